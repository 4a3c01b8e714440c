"""Conditional requests: entity tags, and what they are held against (RFC 9110, section 13)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.http.problems import FieldError, invalid_fields, refusal
from public_json.reasons import Reason

IF_MATCH = "If-Match"
IF_NONE_MATCH = "If-None-Match"

MAX_TAGS = 8
"""Most strong tags of a write. Each may cost a call of the service."""
MAX_ETAG_LENGTH = 64
"""No appointment has a longer one."""

_ELEMENT = re.compile(r'[ \t]*(?:(W/)?"([^"\x00-\x20\x7f]*)"[ \t]*)?(?:,|$)')


@dataclass(frozen=True, slots=True)
class EntityTags:
    """The value of a condition: any tag at all, or those that are listed."""

    any: bool = False
    strong: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()

    def match_strongly(self, etag: str) -> bool:
        return self.any or etag in self.strong

    def match_weakly(self, etag: str) -> bool:
        return self.match_strongly(etag) or etag in self.weak


def read_tags(values: Sequence[str]) -> EntityTags:
    """Read all values of a header. Raises `ValueError` in words for the caller."""
    text = ",".join(values)
    if text.strip(" \t") == "*":
        return EntityTags(any=True)
    tags: dict[bool, list[str]] = {True: [], False: []}
    position = 0
    while position < len(text):
        element = _ELEMENT.match(text, position)
        if element is None:
            break
        if element[2] is not None and element[2] not in tags[element[1] is not None]:
            tags[element[1] is not None].append(element[2])
        position = element.end()
    if position < len(text) or not any(tags.values()):
        raise ValueError('must be * or entity tags in double quotes, such as "2a", "2b"')
    return EntityTags(strong=tuple(tags[False]), weak=tuple(tags[True]))


def expected_etags(tags: EntityTags, body_etag: str) -> Sequence[str]:
    """Give the etags of which a write expects one to be stored, `*` for any.

    `body_etag` is the one that the body expects, if any. Raises `ProblemError`: 412 if
    none of the tags can ever match, 400 if there are too many.
    """
    if tags.any:
        return [body_etag or "*"]
    # Whatever else is an entity tag, the service never gave it out.
    possible = [
        tag
        for tag in tags.strong
        if tag.isascii() and 0 < len(tag) <= MAX_ETAG_LENGTH and tag != "*"
    ]
    if body_etag in possible:
        return [body_etag]
    if len(possible) > MAX_TAGS:
        raise invalid_fields([FieldError(IF_MATCH, f"must have at most {MAX_TAGS} strong tags")])
    if possible:
        return possible
    if tags.weak:
        raise refusal(
            Reason.ETAG_MISMATCH,
            "A weak entity tag (W/) never matches in If-Match; write the etag of the"
            " appointment's body in double quotes instead.",
        )
    raise refusal(Reason.ETAG_MISMATCH, "No appointment ever has such an etag.")
