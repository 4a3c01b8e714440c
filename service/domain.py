"""What the service is about: appointments, writes and their results.

Times are aware datetimes in UTC with microseconds. `attributes` is canonical JSON text
(compact, keys sorted), so equal text means equal content.
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
    """What a write did; CREATED, UPDATED and CANCELLED are the kinds of change in history too."""

    CREATED = "CREATED"
    UPDATED = "UPDATED"
    CANCELLED = "CANCELLED"
    UNCHANGED = "UNCHANGED"
    STALE = "STALE"


class Appointment(NamedTuple):
    """An appointment as stored: the half-open range `[start, end)` of a resource.

    A tuple, since many are made a request: a third of the cost of a frozen dataclass.
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
        """The opaque tag of this version: every version has its own revision.

        One that was only validated has neither.
        """
        return f"{self.revision:x}" if self.revision else ""


# Stands for any stored version as the expected revision; real ones start at 1.
ANY_REVISION = 0


def expected_revision(etag: str) -> int | None:
    """Return the revision that an etag stands for, or None for no etag.

    One that the service never gave out becomes a revision that no appointment has, so
    that it is answered as a mismatch: to a caller an etag is opaque, not malformed.
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

    `created_at` and `updated_at` are None where the caller gave none. `id_given` is
    False where the service made the id.
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
    """Free an appointment's range, keeping the rest. `updated_at` is None where none was given."""

    id: str
    updated_at: datetime | None
    expected_revision: int | None
    idempotency_key: str | None
    validate_only: bool
    actor: str


Write = Upsert | Cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What a write did, and the appointment as stored after it."""

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
    """An active appointment that occupies a wanted range."""

    id: str
    start: datetime
    end: datetime
    version: int


DIGEST_VERSION = b"\x01"


def idempotency_digest(write: Write) -> bytes:
    """Return the digest that tells a write from another one under the same idempotency key.

    It is `DIGEST_VERSION` as one byte, then the SHA-256 of a JSON array of the kind, the id
    (null if the service made it, so that a retry of a write without id is the same write)
    and the content. Guards and options are no part of it: a retry may leave them out.

    Digests are stored for ever and compared as a whole. So a field added later goes to the
    end as a pair of its name and value, and only if it is set: all other writes keep their
    digests. See docs/decisions/0011-digests-keep-their-meaning.md.
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
    """Make an id in the order of time: a UUIDv7 (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    number = milliseconds << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=number))
