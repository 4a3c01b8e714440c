"""The context of a call, read from its gRPC metadata: request id, actor, credential, deadline."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from runtime.tracing import TRACEPARENT, TRACESTATE
from service import rules

REQUEST_ID = "x-request-id"
ACTOR = "x-actor"
ACTOR_BYTES = "x-actor-bin"
"""The actor in UTF-8. Metadata without `-bin` is ASCII only."""
AUTHORIZATION = "authorization"
RELAYED = "x-relayed"
"""A plain call of a gateway, for one of its callers."""
MAX_ACTOR = 256
MAX_REQUEST_ID = 128

_ACTOR_KEYS = frozenset({ACTOR, ACTOR_BYTES})
_TRACE_KEYS = frozenset({TRACEPARENT, TRACESTATE})

# Keys may repeat. The values of keys that end in `-bin` are bytes.
Metadata = Iterable[tuple[str, str | bytes]]


class CallContext(NamedTuple):
    """The context of a call, the same for a plain call and for a call on a relay stream.

    `timeout` is the time left until the caller's deadline, in seconds; None without a deadline.
    """

    request_id: str
    actor: str
    timeout: float | None
    violations: Sequence[tuple[str, str]] = ()
    """Invalid metadata: pairs of key and description. `CallHandler` refuses such a call."""
    authorization: str | None = None
    """The value of the key `authorization`; empty if it is repeated. It contains secrets."""
    identity: str | None = None
    """Whom the certificate of the caller's connection names, if that is a credential here. A call
    on a relay stream, or with RELAYED, has none: the certificate is the gateway's."""
    traceparent: str | None = None
    tracestate: str | None = None
    """The trace of the caller (W3C Trace Context), not checked."""

    def __repr__(self) -> str:
        """Return the request id only, so that no log contains a credential."""
        return f"CallContext({self.request_id!r})"


def read_context(
    metadata: Metadata, timeout: float | None, identity: str | None = None
) -> CallContext:
    """Read the metadata of a call. Unknown keys are ignored."""
    request_ids: list[str | bytes] = []
    actors: list[str | bytes] = []
    credentials: list[str | bytes] = []
    trace: dict[str, str] = {}
    for key, value in metadata:
        if key == REQUEST_ID:
            request_ids.append(value)
        elif key in _ACTOR_KEYS:
            actors.append(value)
        elif key == AUTHORIZATION:
            credentials.append(value)
        elif key == RELAYED:
            identity = None
        elif key in _TRACE_KEYS and isinstance(value, str):
            trace[key] = value
    actor, problem = _actor_of(actors) if actors else ("", "")
    violations = [(ACTOR, problem)] if problem else ()
    authorization = _authorization_of(credentials) if credentials else None
    return CallContext(
        _request_id_of(request_ids),
        actor,
        timeout,
        violations,
        authorization,
        identity,
        trace.get(TRACEPARENT),
        trace.get(TRACESTATE),
    )


def _request_id_of(given: Sequence[str | bytes]) -> str:
    """Return the caller's request id if it is valid, else a new one."""
    request_id = given[0] if len(given) == 1 else ""
    if (
        isinstance(request_id, str)
        and 0 < len(request_id) <= MAX_REQUEST_ID
        and request_id.isprintable()
    ):
        return request_id
    return os.urandom(16).hex()


def _actor_of(given: Sequence[str | bytes]) -> tuple[str, str]:
    """Return the actor and a description of its problem, empty if there is none."""
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


def _authorization_of(given: Sequence[str | bytes]) -> str:
    [value, *others] = given
    return value if isinstance(value, str) and not others else ""
