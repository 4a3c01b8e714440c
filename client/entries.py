"""What a file to import consists of: appointments, and what could not be read as one."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Literal

from appointments.v1.appointment_pb2 import Appointment
from google.protobuf.timestamp_pb2 import Timestamp

Kind = Literal["UNREADABLE", "NOT_AN_EVENT", "OUTSIDE", "SUPERSEDED"]

# As in the rules of the service's protos.
MAX_ID = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An appointment to store or, if it was cancelled, to cancel if it is stored."""

    line: int
    appointment: Appointment
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """What is not imported. `kind` is UNREADABLE if somebody has to mend it."""

    line: int
    kind: Kind
    detail: str
    id: str = ""


Item = Entry | Skipped
Items = Iterator[Item]


class UnreadableError(Exception):
    """An entry cannot be read. The message says what to mend."""


def digest_id(*parts: object) -> str:
    """Return an id for content that has none, or one that the service does not take.

    The same content always gets the same id.
    """
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def usable_id(text: str) -> str:
    """Return the text if it can be an id, else a digest of it."""
    usable = 0 < len(text) <= MAX_ID and all(character.isprintable() for character in text)
    return text if usable else digest_id(text)


def content_id(appointment: Appointment) -> str:
    """Return an id for an appointment that came without one."""
    return digest_id(
        appointment.resource_id,
        appointment.start.ToNanoseconds(),
        appointment.end.ToNanoseconds(),
        appointment.title,
    )


def read_time(text: object, zone: tzinfo | None) -> datetime:
    """Read a time in the form of ISO 8601. `zone` is that of times without an offset.

    Raises UnreadableError, also for a time without an offset if there is no zone.
    """
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        time = None
    if time is None:
        raise UnreadableError(f"{_shown(text)} is not a time such as 2030-01-07T10:00:00+01:00")
    if time.tzinfo is None:
        if zone is None:
            raise UnreadableError(f"{text} has no offset from UTC: name its zone by --time-zone")
        time = time.replace(tzinfo=zone)
    return time


def set_time(message: Timestamp, time: datetime) -> None:
    """Set a timestamp to an aware time."""
    try:
        message.FromDatetime(time.astimezone(UTC))
    except (OverflowError, ValueError):
        raise UnreadableError(f"{time.isoformat()} is not in the years 1 to 9999") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
