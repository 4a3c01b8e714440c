"""Conditional requests: entity tags, and how they match (RFC 9110, section 13)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.http.problems import FieldError, invalid_fields, refusal
from public_json.reasons import Reason

IF_MATCH = "If-Match"
IF_NONE_MATCH = "If-None-Match"

MAX_TAGS = 8
"""Maximum number of strong tags of a write. Each may need a call of the service."""
MAX_ETAG_LENGTH = 64
"""No appointment and no list has a longer etag."""

GZIP_SUFFIX = "-gzip"
"""The end of the strong tag of a compressed response (`gateway.http.compression`)."""

_LIST_ETAG = re.compile(rf"[0-9a-z-]{{1,{MAX_ETAG_LENGTH - 1}}}")
_ELEMENT = re.compile(r'[ \t]*(?:(W/)?"([^"\x00-\x20\x7f]*)"[ \t]*)?(?:,|\Z)')


@dataclass(frozen=True, slots=True)
class EntityTags:
    """The value of a condition: `*` (`any`), or a list of tags."""

    any: bool = False
    strong: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()

    def match_strongly(self, etag: str) -> bool:
        return self.any or etag in self.strong

    def match_weakly(self, etag: str) -> bool:
        return self.match_strongly(etag) or etag in self.weak


def read_tags(values: Sequence[str]) -> EntityTags:
    """Parse all values of a header. Tags of compressed responses lose their suffix.

    Raises `ValueError` with a message for the caller.
    """
    text = ",".join(values)
    if text.strip(" \t") == "*":
        return EntityTags(any=True)
    tags: dict[bool, list[str]] = {True: [], False: []}
    position = 0
    while position < len(text):
        element = _ELEMENT.match(text, position)
        if element is None:
            break
        if element[2] is not None:
            tag = element[2].removesuffix(GZIP_SUFFIX)
            known = tags[element[1] is not None]
            if tag not in known:
                known.append(tag)
        position = element.end()
    if position < len(text) or not any(tags.values()):
        raise ValueError('must be * or entity tags in double quotes, such as "2a", "2b"')
    return EntityTags(strong=tuple(tags[False]), weak=tuple(tags[True]))


def possible_list_etags(tags: EntityTags) -> Sequence[str]:
    """Return the tags that a list may have, which the service compares."""
    known = [tag for tag in (*tags.weak, *tags.strong) if _LIST_ETAG.fullmatch(tag)]
    return known[:MAX_TAGS]


def expected_etags(tags: EntityTags, body_etag: str) -> Sequence[str]:
    """Return the etags of which a write expects one to be stored; `*` means any.

    `body_etag` is the etag that the body expects, or empty. Raises `ProblemError`: 412 if no
    tag can ever match, 400 if there are too many tags.
    """
    if tags.any:
        return [body_etag or "*"]
    # Other tags are valid, but never the etag of an appointment.
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
            "A weak entity tag (W/) never matches in If-Match; send the etag of the"
            " appointment's body in double quotes instead.",
        )
    raise refusal(Reason.ETAG_MISMATCH, "No appointment can have this etag.")
