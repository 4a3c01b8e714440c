"""The domain: appointments, writes and their results.

Times are aware datetimes in UTC with microseconds. `attributes` is canonical JSON text
(compact, keys sorted), so that equal content has equal text.
"""

import hashlib
import json
import os
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

DEFAULT_ORGANIZATION = "default"


class State(StrEnum):
    ACTIVE = "ACTIVE"
    CANCELLED = "CANCELLED"


class Outcome(StrEnum):
    """The outcome of a write. CREATED, UPDATED and CANCELLED are also the changes in history."""

    CREATED = "CREATED"
    UPDATED = "UPDATED"
    CANCELLED = "CANCELLED"
    UNCHANGED = "UNCHANGED"
    STALE = "STALE"


class Appointment(NamedTuple):
    """An appointment as stored: the half-open range `[start, end)` of a resource.

    A named tuple, because a request may create many and a frozen dataclass costs three times
    as much.
    """

    organization_id: str
    id: str
    resource_id: str
    start: datetime
    end: datetime
    title: str
    attributes: str
    created_at: datetime
    updated_at: datetime
    state: State
    version: int
    revision: int

    @property
    def etag(self) -> str:
        """The opaque tag of this version, made from its revision.

        Empty for the result of `validate_only`, which has no revision.
        """
        return f"{self.revision:x}" if self.revision else ""


# As the expected revision: any stored version. Revisions start at 1.
ANY_REVISION = 0


def expected_revision(etag: str) -> int | None:
    """Return the revision of an etag, or None for an empty one.

    An etag that the service cannot have returned gives -1, which no appointment has. So it is
    a mismatch, not a malformed request: to callers etags are opaque.
    """
    if not etag:
        return None
    if etag == "*":
        return ANY_REVISION
    try:
        revision = int(etag, 16)
    except ValueError:
        return -1
    return revision if f"{revision:x}" == etag and 0 < revision < 2**63 else -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsert:
    """Create an appointment or replace its content.

    `created_at` and `updated_at` are None if the caller did not set them. `id_given` is False
    if the service generated the id.
    """

    id: str
    id_given: bool
    resource_id: str
    start: datetime
    end: datetime
    title: str
    attributes: str
    created_at: datetime | None
    updated_at: datetime | None
    expected_revision: int | None
    create_only: bool
    idempotency_key: str | None
    validate_only: bool
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Cancel an appointment, which frees its range. `updated_at` is None if not set."""

    id: str
    updated_at: datetime | None
    expected_revision: int | None
    idempotency_key: str | None
    validate_only: bool
    actor: str


Write = Upsert | Cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """The outcome of a write, and the appointment as stored after it."""

    outcome: Outcome
    appointment: Appointment
    organization_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    revision: int
    change: Outcome
    recorded_at: datetime
    actor: str
    idempotency_key: str | None
    appointment: Appointment


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """An active appointment that overlaps the range of a refused write."""

    id: str
    start: datetime
    end: datetime
    version: int


DIGEST_VERSION = b"\x01"


def idempotency_digest(write: Write) -> bytes:
    """Return a digest that detects another write under the same idempotency key.

    It is the byte `DIGEST_VERSION`, followed by the SHA-256 of a JSON array of the kind, the
    id and the content. The id is null if the service generated it, so that a retry of a write
    without id has the same digest. Preconditions and options are not included, since a retry
    may leave them out.

    Stored digests never expire and are compared as a whole. So a field added later is appended
    as a pair of its name and value, only if it is set: all other writes keep their digests.
    See docs/decisions/0011-digests-keep-their-meaning.md.
    """
    parts: list[str | None]
    if isinstance(write, Cancel):
        parts = ["CANCEL", write.id]
        if write.updated_at is not None:
            parts.append(write.updated_at.isoformat())
    else:
        parts = [
            "UPSERT",
            write.id if write.id_given else None,
            write.resource_id,
            write.start.isoformat(),
            write.end.isoformat(),
            write.title,
            write.attributes,
            write.created_at.isoformat() if write.created_at else None,
            write.updated_at.isoformat() if write.updated_at else None,
        ]
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return DIGEST_VERSION + hashlib.sha256(text.encode()).digest()


def new_id() -> str:
    """Return a new id, a UUIDv7 (RFC 9562, section 5.7): ids sort by their time."""
    milliseconds = time.time_ns() // 1_000_000
    number = milliseconds << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=number))
