"""One event of a calendar as an appointment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Literal
from zoneinfo import ZoneInfo

import icalendar
from appointments.v1.appointment_pb2 import Appointment
from icalendar.parser import unescape_backslash

from client.entries import Entry, UnreadableError, content_id, set_time

# Where a parsed event carries the line on which it begins.
LINE = "X-APPOINTMENTS-LINE"
# What an export of this client adds, so that it can be imported again as it was.
ID = "X-APPOINTMENTS-ID"
RESOURCE = "X-APPOINTMENTS-RESOURCE"

_DAY = timedelta(days=1)
_CONTROL = re.compile(r"\s*[\x00-\x1f\x7f-\x9f]+\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Which resource events occupy: a given one, that of their location, or their calendar's."""

    resource: str | None = None
    source: Literal["location", "calendar"] | None = None

    def within(self, properties: Mapping[str, bytes]) -> "Placing":
        """Return the placing of the events of a calendar."""
        if self.source != "calendar":
            return self
        name = properties.get("X-WR-CALNAME") or properties.get("NAME") or b""
        return replace(self, resource=_unescaped(name.decode("utf-8", "replace")), source=None)

    def place(self, appointment: Appointment, event: icalendar.Event) -> None:
        """Set the resources of an appointment."""
        exported = [_unescaped(name) for name in _all(event, RESOURCE)]
        if exported:
            appointment.resource_id, *others = exported
            appointment.additional_resource_ids.extend(others)
        elif self.resource is not None:
            appointment.resource_id = self.resource
        elif self.source == "location":
            appointment.resource_id = _plain(event.get("LOCATION", ""))


def entry_of(event: icalendar.Event, id: str, zone: tzinfo | None, placing: Placing) -> Entry:
    """Return an event as an appointment with this id; an empty one is computed from its content.

    One that is cancelled, or takes no time of those who attend (TRANSP), is a cancelled entry.
    Raises UnreadableError.
    """
    appointment = Appointment(title=_plain(event.get("SUMMARY", "")))
    start, end = times(event, zone)
    set_time(appointment.start, start)
    set_time(appointment.end, end)
    placing.place(appointment, event)
    for name, timestamp in (
        ("CREATED", appointment.created_at),
        ("LAST-MODIFIED", appointment.updated_at),
    ):
        stated = getattr(event.get(name), "dt", None)
        if isinstance(stated, datetime) and stated.tzinfo is not None:
            set_time(timestamp, stated)
    appointment.attributes.update(_attributes(event))
    appointment.id = id or content_id(appointment)
    gone = str(event.get("STATUS", "")).upper() == "CANCELLED"
    free = str(event.get("TRANSP", "")).upper() == "TRANSPARENT"
    return Entry(line=line_of(event), appointment=appointment, cancelled=gone or free)


def exported_id(event: icalendar.Event) -> str:
    """Return the id that an export of this client has given an event, empty if there is none."""
    return _unescaped(event.get(ID, ""))


def line_of(event: icalendar.Event) -> int:
    """Return the line of the file on which an event begins."""
    return int(str(event[LINE]))


def _attributes(event: icalendar.Event) -> dict[str, Any]:
    """Return what has no field of its own."""
    attributes: dict[str, Any] = {}
    for name in ("DESCRIPTION", "LOCATION", "URL"):
        text = " ".join(str(each) for each in _all(event, name)).replace("\0", "")
        if text and not (name == "LOCATION" and RESOURCE in event):
            attributes[name.lower()] = text
    categories = [
        str(each) for group in _all(event, "CATEGORIES") for each in getattr(group, "cats", [group])
    ]
    if categories:
        attributes["categories"] = categories
    return attributes


def times(event: icalendar.Event, zone: tzinfo | None) -> tuple[datetime, datetime]:
    """Return start and end of an event. Raises UnreadableError."""
    start, end = _times(event, zone)
    if end < start:
        raise UnreadableError(f"it starts at {start} and ends before, at {end}")
    return start, end


def _times(event: icalendar.Event, zone: tzinfo | None) -> tuple[datetime, datetime]:
    """Without an end, a day is a whole day and a time is an instant (RFC 5545, section 3.6.1)."""
    first = time_of(event, "DTSTART")
    start = _localized(first, zone)
    if "DTEND" in event:
        return start, _localized(time_of(event, "DTEND"), zone)
    duration = getattr(event.get("DURATION"), "dt", None)
    if not isinstance(duration, timedelta):
        is_day = not isinstance(first, datetime)
        return start, _localized(first + _DAY, zone) if is_day else start
    # Days are those of the calendar, the rest is exact (section 3.3.6).
    days = timedelta(days=duration.days)
    return start, (start + days).astimezone(UTC) + (duration - days)


def time_of(event: icalendar.Event, name: str) -> date:
    """Return a date or a datetime. Raises UnreadableError."""
    value = event.get(name)
    if value is None:
        raise UnreadableError(f"{name} is missing")
    if isinstance(value, list):
        raise UnreadableError(f"{name} is there {len(value)} times")
    found = getattr(value, "dt", None)
    if not isinstance(found, date):
        raise UnreadableError(f"{name} is no time")
    _check_zone(name, found, value)
    return found


def _check_zone(name: str, found: date, value: Any) -> None:  # noqa: ANN401
    """Check that a time whose zone has a name has a zone."""
    zone = value.params.get("TZID")
    if zone and isinstance(found, datetime) and found.tzinfo is None:
        raise UnreadableError(f"{name}: the time zone {zone} is not known, and not in the file")


def check_zones(event: icalendar.Event, names: tuple[str, ...]) -> None:
    """Check times in lists, and their zones. Raises UnreadableError."""
    for name in names:
        for value in _all(event, name):
            for each in getattr(value, "dts", [value]):
                found = getattr(each, "dt", None)
                if isinstance(found, time):
                    raise UnreadableError(f"{name} has no date")
                if isinstance(found, date):
                    _check_zone(name, found, value)


def _localized(found: date, zone: tzinfo | None) -> datetime:
    if isinstance(found, datetime) and found.tzinfo is not None:
        return found
    if zone is None:
        what = "a time without a zone" if isinstance(found, datetime) else "a whole day"
        raise UnreadableError(f"{found} is {what}: name the zone by --time-zone")
    clock = found.time() if isinstance(found, datetime) else time.min
    return datetime.combine(found, clock, tzinfo=zone)


def original_day(original: date, of: date) -> date:
    """Return the day of an occurrence, by the clock of its series, which begins at `of`."""
    if not isinstance(original, datetime):
        return original
    if original.tzinfo is not None and isinstance(of, datetime) and of.tzinfo is not None:
        original = original.astimezone(of.tzinfo)
    return original.date()


def named_zone(name: str) -> tzinfo | None:
    """Return the time zone of a name, None if it is none."""
    try:
        return ZoneInfo(name.strip())
    except (KeyError, ValueError, OSError):
        return None


def _all(event: icalendar.Event, name: str) -> list[Any]:
    """Return the values of a property that may be there several times."""
    found = event.get(name, [])
    return found if isinstance(found, list) else [found]


def _unescaped(text: object) -> str:
    """Return the text of a property that the parser does not know."""
    return str(unescape_backslash(str(text)))


def _plain(text: object) -> str:
    """Return a text without control characters, which the service does not take in a title."""
    return _CONTROL.sub(" ", str(text)).strip()
