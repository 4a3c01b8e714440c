"""Page tokens: the position after which a list continues, bound to the request's filters.

A token that depends on revisions ends with the epoch of the database, apart from the first epoch.
"""

import base64
import hashlib
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

import orjson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from service.domain import DEFAULT_ORGANIZATION
from service.errors import EpochEnded, InvalidFields
from service.postgres.epochs import FIRST

# Fields that may change between pages.
_IGNORED_FIELDS = frozenset({"page_token", "page_size", "min_revision", "if_none_match", "epoch"})

_EPOCH = "."


def encode(request: Message, position: Sequence[str | int | None], epoch: str = FIRST) -> str:
    """Return an opaque token to continue after a position with the same filters."""
    position_with_digest = orjson.dumps([_digest(request, position), *position])
    token = base64.urlsafe_b64encode(position_with_digest).rstrip(b"=").decode()
    return f"{token}{_EPOCH}{epoch}" if epoch else token


def decode(
    request: Message, token: str, parts: Sequence[Callable[[Any], Any]], epoch: str = FIRST
) -> list[Any]:
    """Return the position in a token. `parts` has the function that reads each element.

    Raises InvalidFields if the token is malformed or is for other filters, EpochEnded if it is of
    another epoch. This prevents mistakes, not forgery: a token gives access to nothing that its
    request does not.
    """
    token, _, of_epoch = token.partition(_EPOCH)
    try:
        padded = token + "=" * (-len(token) % 4)
        digest, *position = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        found = [read(part) for read, part in zip(parts, position, strict=True)]
    except (ValueError, TypeError):
        digest = None
    if digest is None or digest != _digest(request, position):
        raise InvalidFields(
            [("page_token", "must be the token of the previous page, with the same filters")]
        )
    if of_epoch != epoch:
        raise EpochEnded.of("the page token")
    return found


def time(part: object) -> datetime:
    """Read an aware datetime. Raises ValueError."""
    found = datetime.fromisoformat(part) if isinstance(part, str) else None
    if found is None or found.tzinfo is None:
        raise ValueError(part)
    return found


def appointment_id(part: object) -> str:
    """Read an appointment's id. Raises ValueError."""
    if not isinstance(part, str) or "\0" in part:
        raise ValueError(part)
    return part


def revision(part: object) -> int:
    """Read a revision. Raises ValueError."""
    if type(part) is not int or not 0 <= part < 2**63:
        raise ValueError(part)
    return part


def revision_or_none(part: object) -> int | None:
    return None if part is None else revision(part)


def _digest(request: Message, position: Sequence[str | int | None]) -> str:
    filters = normalized(request, _IGNORED_FIELDS)
    digest = hashlib.sha256(request.DESCRIPTOR.full_name.encode())
    digest.update(filters.SerializeToString(deterministic=True))
    digest.update(orjson.dumps(list(position)))
    return digest.hexdigest()[:16]


def normalized(request: Message, ignored: Collection[str]) -> Message:
    """Return a request in a form that is equal for requests with the same meaning."""
    filters = type(request)()
    filters.CopyFrom(request)
    for name in ignored:
        if name in request.DESCRIPTOR.fields_by_name:
            filters.ClearField(name)
    for field, value in filters.ListFields():
        if field.name == "organization_id" and value == DEFAULT_ORGANIZATION:
            filters.ClearField(field.name)
        elif isinstance(value, Timestamp):
            value.nanos -= value.nanos % 1000  # times have microseconds
        elif field.is_repeated:
            wanted = sorted(set(value))  # a filter selects the same in any order
            del value[:]
            value.extend(wanted)
    return filters
