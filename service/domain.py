"""The domain: appointments, writes and their results.

Times are aware datetimes in UTC with microseconds. `attributes` is canonical JSON text
(compact, keys sorted), so that equal content has equal text.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

DEFAULT_ORGANIZATION = "default"


class State(StrEnum):
    """Whether an appointment occupies its range: ACTIVE and HELD do."""

    ACTIVE = "ACTIVE"
    HELD = "HELD"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


class Change(StrEnum):
    """The kind of a change in history."""

    CREATED = "CREATED"
    UPDATED = "UPDATED"
    CONFIRMED = "CONFIRMED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    REDACTED = "REDACTED"


class Outcome(StrEnum):
    """The outcome of a write."""

    CREATED = "CREATED"
    UPDATED = "UPDATED"
    CONFIRMED = "CONFIRMED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    REDACTED = "REDACTED"
    UNCHANGED = "UNCHANGED"
    STALE = "STALE"


class Appointment(NamedTuple):
    """An appointment as stored: the half-open range `[start, end)` of its resources.

    `hold_until` is None if the appointment is firm. `state` is EXPIRED from that time on. `epoch`
    is that of the database when it was read.

    A named tuple, because a request may create many and a frozen dataclass costs three times
    as much.
    """

    organization_id: str
    id: str
    resource_id: str
    additional_resource_ids: tuple[str, ...]
    start: datetime
    end: datetime
    title: str
    attributes: str
    created_at: datetime
    updated_at: datetime
    hold_until: datetime | None
    state: State
    version: int
    revision: int
    epoch: str

    @property
    def etag(self) -> str:
        return etag_of(self.revision, self.state, self.epoch)


def etag_of(revision: int, state: State, epoch: str) -> str:
    """Return the opaque tag of a version of an appointment.

    A hold that has expired has another one than before, also if no change of its own records it
    yet. Empty for the result of `validate_only`, which has no revision.
    """
    if not revision:
        return ""
    etag = f"{revision:x}{_EXPIRED if state is State.EXPIRED else ''}"
    return f"{etag}{_EPOCH}{epoch}" if epoch else etag


_EXPIRED = "x"
_EPOCH = "."

# As the expected revision: any stored version, and none. Revisions start at 1.
ANY_REVISION = 0
NO_REVISION = 2**63 - 1


def expected_revision(etag: str, epoch: str) -> int | None:
    """Return the revision of an etag, or None for an empty one.

    It is negative for an appointment that has expired. An etag that the service cannot have
    returned in this epoch gives NO_REVISION, which no appointment has. So it is a mismatch, not a
    malformed request: to callers etags are opaque.
    """
    if not etag:
        return None
    if etag == "*":
        return ANY_REVISION
    etag, _, of_epoch = etag.partition(_EPOCH)
    if of_epoch != epoch:
        return NO_REVISION
    digits = etag.removesuffix(_EXPIRED)
    try:
        revision = int(digits, 16)
    except ValueError:
        return NO_REVISION
    if f"{revision:x}" != digits or not 0 < revision < NO_REVISION:
        return NO_REVISION
    return revision if digits == etag else -revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsert:
    """Create an appointment or replace its content.

    `created_at` and `updated_at` are None if the caller did not set them. `id_given` is False
    if the service generated the id. `hold_until` is None for a firm appointment; otherwise it
    is at most `max_hold` ahead. `suggest` is the number of free ranges to name in a conflict.
    `trace` is stored with the change: the traceparent of the call, None if it is not sampled.
    """

    id: str
    id_given: bool
    resource_id: str
    additional_resource_ids: tuple[str, ...]
    start: datetime
    end: datetime
    title: str
    attributes: str
    created_at: datetime | None
    updated_at: datetime | None
    hold_until: datetime | None
    max_hold: timedelta
    expected_revision: int | None
    create_only: bool
    idempotency_key: str | None
    validate_only: bool
    suggest: int
    actor: str
    trace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Change the fields of an appointment that are in `fields`; the others are ignored.

    A field that is None is cleared. `attributes_patch` is merged into the stored attributes.
    With `allow_missing`, a missing appointment is created from all fields, of which `start` and
    `end` are set then.
    """

    id: str
    fields: frozenset[str]
    resource_id: str
    additional_resource_ids: tuple[str, ...]
    start: datetime | None
    end: datetime | None
    title: str
    attributes: str
    attributes_patch: str | None
    created_at: datetime | None
    updated_at: datetime | None
    hold_until: datetime | None
    max_hold: timedelta
    allow_missing: bool
    expected_revision: int | None
    idempotency_key: str | None
    validate_only: bool
    actor: str
    trace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """Make a held appointment firm."""

    id: str
    expected_revision: int | None
    idempotency_key: str | None
    validate_only: bool
    actor: str
    trace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Cancel an appointment, which frees its range. `updated_at` is None if not set."""

    id: str
    updated_at: datetime | None
    expected_revision: int | None
    idempotency_key: str | None
    validate_only: bool
    actor: str
    trace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redact:
    """Erase title, attributes, actors and idempotency keys of an appointment and its history.

    It has no actor of its own: that would be another name to erase.
    """

    id: str
    expected_revision: int | None
    idempotency_key: str | None
    validate_only: bool
    trace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire:
    """Record that a hold has expired. The outcome is UNCHANGED if it has not."""

    id: str


Write = Upsert | Update | Confirm | Cancel | Redact | Expire


WriteOrBatch = TypeVar("WriteOrBatch", bound="Write | AtomicBatch")


def traced(write: WriteOrBatch, trace: str) -> WriteOrBatch:
    """Return a write as part of a trace."""
    if isinstance(write, AtomicBatch):
        upserts = [replace(upsert, trace=trace) for upsert in write.upserts]
        return replace(write, upserts=upserts)
    return write if isinstance(write, Expire) else replace(write, trace=trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class AtomicBatch:
    """Upserts of different ids that are applied together or not at all."""

    upserts: Sequence[Upsert]
    validate_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """The outcome of a write, and the appointment as stored after it."""

    outcome: Outcome
    appointment: Appointment
    organization_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """A change. `released_resource_ids` are the resources that the appointment left by it.

    Those of a redaction are all that it had before and has no longer.
    """

    revision: int
    change: Change
    recorded_at: datetime
    actor: str
    idempotency_key: str | None
    released_resource_ids: tuple[str, ...]
    appointment: Appointment


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFilter:
    """Selects the changes of one resource, of some kinds, or both.

    A change belongs to a resource if the appointment has the resource after it, or left it by
    this change, so that followers of a resource also get moves away from it. `resource_id` None
    and empty `changes` select all. A redaction is selected by every kind, since its follower may
    have stored what was erased. `reads/entries.py` has the same condition in SQL.
    """

    resource_id: str | None = None
    changes: frozenset[Change] = frozenset()

    @property
    def selects_all(self) -> bool:
        return self.resource_id is None and not self.changes

    @property
    def kinds(self) -> frozenset[Change]:
        """The kinds of changes that are selected, if not all are."""
        return self.changes | {Change.REDACTED}

    def selects(self, entry: HistoryEntry) -> bool:
        if self.changes and entry.change not in self.kinds:
            return False
        return (
            self.resource_id is None
            or self.resource_id == entry.appointment.resource_id
            or self.resource_id in entry.appointment.additional_resource_ids
            or self.resource_id in entry.released_resource_ids
        )


ALL_CHANGES = ChangeFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """An appointment that occupies `resource_ids` in the range of a refused write.

    `index` is its place in the atomic batch that was refused, None if it is not part of it.
    """

    id: str
    start: datetime
    end: datetime
    version: int
    resource_ids: Sequence[str]
    index: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRange:
    """The half-open range `[start, end)`."""

    start: datetime
    end: datetime


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
    parts: list[Any]
    match write:
        case Cancel():
            parts = ["CANCEL", write.id]
            if write.updated_at is not None:
                parts.append(write.updated_at.isoformat())
        case Confirm():
            parts = ["CONFIRM", write.id]
        case Redact():
            parts = ["REDACT", write.id]
        case Expire():
            parts = ["EXPIRE", write.id]
        case Update():
            parts = ["UPDATE", write.id]
            parts += [[name, _plain(getattr(write, name))] for name in sorted(write.fields)]
            if write.attributes_patch is not None:
                parts.append(["attributes_patch", write.attributes_patch])
        case Upsert():
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
            if write.additional_resource_ids:
                parts += ["additional_resource_ids", write.additional_resource_ids]
            if write.hold_until is not None:
                parts += ["hold_until", write.hold_until.isoformat()]
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return DIGEST_VERSION + hashlib.sha256(text.encode()).digest()


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def new_id() -> str:
    """Return a new id, a UUIDv7 (RFC 9562, section 5.7): ids sort by their time."""
    milliseconds = time.time_ns() // 1_000_000
    number = milliseconds << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=number))
