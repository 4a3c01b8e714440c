"""iCalendar (RFC 5545): events as appointments, recurring ones as one for each occurrence.

Parsing is icalendar's, recurrence that of recurring-ical-events.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import groupby
from typing import BinaryIO

import icalendar
import recurring_ical_events
from icalendar.timezone import tzp

from client.calendar_text import CalendarText, Component, calendars_of
from client.entries import Entry, Item, Items, Kind, Skipped, UnreadableError, usable_id
from client.event import (
    LINE,
    Placing,
    check_zones,
    entry_of,
    exported_id,
    line_of,
    named_zone,
    original_day,
    time_of,
    times,
)

_DAY = timedelta(days=1)
# Occurrences of these are no appointments, and a year of them would not fit into memory.
_TOO_OFTEN = frozenset({"SECONDLY", "MINUTELY"})
_TIMES = ("DTSTART", "DTEND", "RDATE", "EXDATE", "RECURRENCE-ID")
_RECURRENCE = ("RRULE", "RDATE", "EXDATE", "RECURRENCE-ID")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Recurring events are expanded within it; others are left out only if it was asked for."""

    start: datetime
    end: datetime
    for_all: bool

    def has(self, entry: Entry) -> bool:
        appointment = entry.appointment
        return (
            appointment.start.ToDatetime(UTC) < self.end
            and self.start < appointment.end.ToDatetime(UTC)
        )  # fmt: skip


class CalendarFile:
    """The items of a file, and how many of its events have been read."""

    def __init__(
        self, file: BinaryIO, zone: tzinfo | None, placing: Placing, window: Window
    ) -> None:
        self._file = file
        self._zone = zone
        self._placing = placing
        self._window = window
        self._exported: set[str] = set()
        self.read = 0
        self.total: int | None = None

    def position(self) -> tuple[int, int | None]:
        """Return the number of events so far, and of all."""
        return self.read, self.total

    def items(self) -> Items:
        """Yield an item for each entry, and one for each occurrence of a recurring event.

        The text of the whole file is in memory, since parts of a series may be anywhere in it.
        """
        calendars = list(calendars_of(self._file))
        self.total = sum(len(calendar.events) for calendar in calendars)
        for calendar in calendars:
            yield from calendar.skipped
            yield from self._calendar(calendar)

    def _calendar(self, calendar: CalendarText) -> Items:
        scale = calendar.properties.get("CALSCALE", b"GREGORIAN").decode("utf-8", "replace")
        yield from _learn_time_zones(calendar.time_zones)
        zone = self._zone or named_zone(calendar.properties.get("X-WR-TIMEZONE", b"").decode())
        placing = self._placing.within(calendar.properties)
        series: Mapping[bytes, list[Component]] = defaultdict(list)
        for component in calendar.events:
            # Those without a UID have nothing in common.
            series[component.uid or b"line %d" % component.line].append(component)
        for uid, components in series.items():
            self.read += len(components)
            if scale.upper() != "GREGORIAN":
                for component in components:
                    detail = f"the calendar scale {scale} is not supported"
                    yield Skipped(line=component.line, kind="UNREADABLE", detail=detail)
                continue
            one = _Series(uid, zone, placing, self._window, self._exported)
            yield from one.items(components)


def _learn_time_zones(components: Sequence[Component]) -> Items:
    """Make the time zones of a calendar known to the parser, and forget those of another one."""
    tzp.use_zoneinfo()
    for component in components:
        try:
            parsed = icalendar.Timezone.from_ical(component.text)
            tzp.cache_timezone_component(parsed)
        except Exception as error:  # noqa: BLE001  the parser raises anything for broken content
            detail = f"the time zone cannot be read: {_first_line(error)}"
            yield Skipped(line=component.line, kind="UNREADABLE", detail=detail)


class _Series:
    """The events of one UID.

    `exported` has the ids that earlier events of the file brought along from an export of this
    client. A copy that a calendar program has made brings the id of its original.
    """

    def __init__(
        self,
        uid: bytes,
        zone: tzinfo | None,
        placing: Placing,
        window: Window,
        exported: set[str],
    ) -> None:
        self._id = ""
        self._uid = uid
        self._exported = exported
        self._zone = zone
        self._placing = placing
        self._window = window

    def items(self, components: Sequence[Component]) -> Items:
        """Yield the items; what cannot be read is one for each component."""
        events = []
        for component in components:
            try:
                events.append(_parsed(component))
            except UnreadableError as error:
                yield Skipped(
                    line=component.line,
                    kind="UNREADABLE",
                    detail=str(error),
                    id=self._uid.decode("utf-8", "replace"),
                )
        if not events:
            return
        self._id = self._id_of(events[0])
        try:
            if any(name in event for event in events for name in _RECURRENCE):
                yield from list(self._recurring(events))
            else:
                yield from list(self._single(events))
        except Exception as error:  # noqa: BLE001  the libraries raise anything for broken content
            for event in events:
                yield self._skipped(event, "UNREADABLE", _first_line(error))

    def _single(self, events: Sequence[icalendar.Event]) -> Iterator[Item]:
        *superseded, latest = sorted(events, key=lambda event: int(event.get("SEQUENCE", 0)))
        for event in superseded:
            line = line_of(latest)
            yield self._skipped(event, "SUPERSEDED", f"the entry of line {line} has the same UID")
        entry = entry_of(latest, self._id, self._zone, self._placing)
        if self._window.for_all and not self._window.has(entry):
            yield self._skipped(latest, "OUTSIDE", "it is not between --from and --to")
        else:
            yield entry

    def _recurring(self, events: Sequence[icalendar.Event]) -> Iterator[Item]:
        calendar = icalendar.Calendar()
        for event in events:
            _check_frequency(event)
            check_zones(event, _TIMES)
            times(event, self._zone)  # the library would turn around what ends before it starts
            event["UID"] = self._id  # events of a series may write it differently
            calendar.add_component(event)
        masters = [event for event in events if "RECURRENCE-ID" not in event]
        master = max(masters or events, key=lambda event: int(event.get("SEQUENCE", 0)))
        of = time_of(master, "DTSTART")
        # A day more on each side: occurrences of one day are counted together.
        occurrences = recurring_ical_events.of(calendar).between(
            self._window.start - _DAY, self._window.end + _DAY
        )
        days = [(original_day(time_of(each, "RECURRENCE-ID"), of), each) for each in occurrences]
        days.sort(key=lambda pair: (pair[0], time_of(pair[1], "RECURRENCE-ID").isoformat()))
        read: set[int] = set()
        for day, of_day in groupby(days, key=lambda pair: pair[0]):
            for number, (_, occurrence) in enumerate(of_day, 1):
                entry = self._occurrence(occurrence, self._occurrence_id(day, number))
                if self._window.has(entry):
                    read.add(entry.line)
                    yield entry
        for entry in self._excluded(master, {day for day, _ in days}):
            read.add(entry.line)
            yield entry
        for event in events:
            if line_of(event) not in read:
                detail = "it has no occurrence between the dates, or another entry replaces them"
                yield self._skipped(event, "OUTSIDE", detail)

    def _excluded(self, master: icalendar.Event, there: set[date]) -> Iterator[Entry]:
        """Yield the occurrences that an EXDATE takes away: an earlier import may have them."""
        if not self._id:
            return
        start, end = times(master, self._zone)
        first = time_of(master, "DTSTART")
        given = master.get("EXDATE", [])
        for listed in given if isinstance(given, list) else [given]:
            for excluded in listed.dts:
                day = original_day(excluded.dt, first)
                if day in there:
                    continue
                entry = self._occurrence(master, self._occurrence_id(day, 1))
                shift = day - original_day(first, first)
                entry.appointment.start.FromDatetime((start + shift).astimezone(UTC))
                entry.appointment.end.FromDatetime((end + shift).astimezone(UTC))
                # It says nothing about when it was excluded.
                entry.appointment.ClearField("updated_at")
                if self._window.has(entry):
                    yield Entry(line=entry.line, appointment=entry.appointment, cancelled=True)

    def _occurrence(self, event: icalendar.Event, id: str) -> Entry:
        return entry_of(event, id, self._zone, self._placing)

    def _id_of(self, event: icalendar.Event) -> str:
        """Return the id of the series, empty if it has none.

        A meeting has the same UID in the calendars of all who attend: it is one of each.
        """
        exported = exported_id(event)
        if exported and exported not in self._exported:
            self._exported.add(exported)
            return exported
        uid = str(event.get("UID", "")).strip()
        whose = f"{self._placing.resource}/" if self._placing.resource else ""
        return usable_id(f"{whose}{uid}") if uid else ""

    def _occurrence_id(self, day: date, number: int) -> str:
        """Return the id of an occurrence: it stays when the series moves to another hour."""
        again = f"_{number}" if number > 1 else ""
        return usable_id(f"{self._id}_{day:%Y%m%d}{again}") if self._id else ""

    def _skipped(self, event: icalendar.Event, kind: Kind, detail: str) -> Skipped:
        return Skipped(line=line_of(event), kind=kind, detail=detail, id=self._id)


def _parsed(component: Component) -> icalendar.Event:
    """Parse an event. Raises UnreadableError."""
    try:
        text = component.text.decode()
    except UnicodeDecodeError:
        raise UnreadableError("it is not UTF-8") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # about vendors' names of time zones
            event = icalendar.Event.from_ical(text)
    except Exception as error:
        raise UnreadableError(_first_line(error)) from error
    if not isinstance(event, icalendar.Event):
        raise UnreadableError("it is no VEVENT")
    for name, detail in event.errors:
        if name is None or name.upper() in _NEEDED:
            raise UnreadableError(f"{name or 'a line'} cannot be read: {detail}")
    event[LINE] = str(component.line)
    return event


_NEEDED = frozenset({"DTSTART", "DTEND", "DURATION", "UID", "STATUS", *_RECURRENCE})


def _check_frequency(event: icalendar.Event) -> None:
    rules = event.get("RRULE", [])
    for rule in rules if isinstance(rules, list) else [rules]:
        for frequency in rule.get("FREQ", []):
            if str(frequency).upper() in _TOO_OFTEN:
                raise UnreadableError(f"FREQ={frequency} is too often for appointments")


def _first_line(error: Exception) -> str:
    lines: Iterable[str] = str(error).splitlines()
    return next(iter(lines), type(error).__name__)[:300]
