"""Page tokens: where a list goes on, bound to the request that it was made for."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import orjson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from service.domain import DEFAULT_ORGANIZATION
from service.errors import InvalidFields

# What may differ from one page to the next.
_FREE_FIELDS = frozenset({"page_token", "page_size", "min_revision"})


def encode(request: Message, position: Sequence[str | int | None]) -> str:
    """Return an opaque token for going on after a position with the same filters."""
    token = orjson.dumps([_digest(request, position), *position])
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def decode(request: Message, token: str, parts: Sequence[Callable[[Any], Any]]) -> list[Any]:
    """Return the position in a token, each element read by its part's function.

    Raises InvalidFields for a token of another request, or of none. It guards against
    mistakes, not against forgery: a token opens nothing that its request does not.
    """
    try:
        padded = token + "=" * (-len(token) % 4)
        digest, *position = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if digest == _digest(request, position):
            return [read(part) for read, part in zip(parts, position, strict=True)]
    except (ValueError, TypeError):
        pass
    raise InvalidFields(
        [("page_token", "must be the token of the page before, with the same filters")]
    )


def time(part: object) -> datetime:
    """Read an aware time."""
    found = datetime.fromisoformat(part) if isinstance(part, str) else None
    if found is None or found.tzinfo is None:
        raise ValueError(part)
    return found


def appointment_id(part: object) -> str:
    """Read an appointment's id."""
    if not isinstance(part, str) or "\0" in part:
        raise ValueError(part)
    return part


def revision(part: object) -> int:
    """Read a revision."""
    if type(part) is not int or not 0 <= part < 2**63:
        raise ValueError(part)
    return part


def revision_or_none(part: object) -> int | None:
    return None if part is None else revision(part)


def _digest(request: Message, position: Sequence[str | int | None]) -> str:
    filters = _question(request)
    digest = hashlib.sha256(request.DESCRIPTOR.full_name.encode())
    digest.update(filters.SerializeToString(deterministic=True))
    digest.update(orjson.dumps(list(position)))
    return digest.hexdigest()[:16]


def _question(request: Message) -> Message:
    """Return what a request asks, the same for all that say it differently."""
    question = type(request)()
    question.CopyFrom(request)
    for name in _FREE_FIELDS & set(request.DESCRIPTOR.fields_by_name):
        question.ClearField(name)
    for field, value in question.ListFields():
        if field.name == "organization_id" and value == DEFAULT_ORGANIZATION:
            question.ClearField(field.name)
        elif isinstance(value, Timestamp):
            value.nanos -= value.nanos % 1000  # what is read of it
    return question
