"""What a caller brings with its request, as gRPC metadata: read here, whichever way it came."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from service import rules

REQUEST_ID = "x-request-id"
ACTOR = "x-actor"
ACTOR_BYTES = "x-actor-bin"
"""The actor in UTF-8, which other metadata cannot carry."""
MAX_ACTOR = 256
MAX_REQUEST_ID = 128

_ACTOR_KEYS = frozenset({ACTOR, ACTOR_BYTES})

# Keys may repeat. The values of keys that end in `-bin` are bytes.
Metadata = Iterable[tuple[str, str | bytes]]


class CallContext(NamedTuple):
    """What a caller brings with its request.

    `timeout` is the time left until the caller's deadline, in seconds; None without a deadline.
    """

    request_id: str
    actor: str
    timeout: float | None
    violations: Sequence[tuple[str, str]] = ()
    """What is wrong with the metadata, by key. `CallHandler` refuses the call."""


def read_context(metadata: Metadata, timeout: float | None) -> CallContext:
    """Read the metadata of a call. Keys that are not known are ignored."""
    request_ids: list[str | bytes] = []
    actors: list[str | bytes] = []
    for key, value in metadata:
        if key == REQUEST_ID:
            request_ids.append(value)
        elif key in _ACTOR_KEYS:
            actors.append(value)
    actor, fault = _actor_of(actors) if actors else ("", "")
    violations = [(ACTOR, fault)] if fault else ()
    return CallContext(_request_id_of(request_ids), actor, timeout, violations)


def _request_id_of(given: Sequence[str | bytes]) -> str:
    """Return the caller's request id if it can be logged, else a new one."""
    request_id = given[0] if len(given) == 1 else ""
    if (
        isinstance(request_id, str)
        and 0 < len(request_id) <= MAX_REQUEST_ID
        and request_id.isprintable()
    ):
        return request_id
    return os.urandom(16).hex()


def _actor_of(given: Sequence[str | bytes]) -> tuple[str, str]:
    """Return the actor and what is wrong with it, if anything."""
    if len(given) > 1:
        return "", f"must not be repeated, as {ACTOR} or {ACTOR_BYTES}"
    try:
        actor = given[0].decode() if isinstance(given[0], bytes) else given[0]
    except UnicodeDecodeError:
        return "", "must be UTF-8"
    if len(actor) > MAX_ACTOR:
        return actor, f"must have at most {MAX_ACTOR} characters"
    if rules.CONTROL.search(actor):
        return actor, "must not contain control characters"
    return actor, ""
