"""iCalendar files as components with their lines, before anything is parsed.

So a broken event is one event, whatever the parser says to it, and has a line to look at.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from client.entries import Skipped
from client.lines import TOO_LONG, numbered_lines

_BEGIN = re.compile(rb"BEGIN:([^\r\n]*)", re.IGNORECASE)
_END = re.compile(rb"END:([^\r\n]*)", re.IGNORECASE)
_PROPERTY = re.compile(rb"([A-Za-z0-9-]+)(?:;[^:]*)?:(.*)", re.DOTALL)
_FOLD = re.compile(rb"\r?\n[ \t]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A component, without those that it contains, such as alarms."""

    line: int
    name: str
    text: bytes

    @property
    def uid(self) -> bytes:
        """The UID as it is written, empty if there is none."""
        for line in _FOLD.sub(b"", self.text).splitlines():
            found = _PROPERTY.fullmatch(line)
            if found and found[1].upper() == b"UID":
                return found[2].strip()
        return b""


@dataclass(slots=True, kw_only=True)
class CalendarText:
    """A calendar of a file. `properties` are its own ones, by their names in capitals."""

    properties: dict[str, bytes] = field(default_factory=dict)
    time_zones: list[Component] = field(default_factory=list)
    events: list[Component] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def calendars_of(file: BinaryIO) -> Iterator[CalendarText]:
    """Split a file. Components outside of a calendar are yielded as one."""
    splitter = _Splitter()
    number = 0
    for number, line in numbered_lines(file):
        if line is None:
            splitter.fail(number, TOO_LONG)
        else:
            yield from splitter.take(number, line)
    if not splitter.begun:
        splitter.fail(max(number, 1), "not iCalendar: it has no BEGIN:VCALENDAR")
    elif splitter.is_open:
        splitter.fail(number, "the file ends before it does")
    yield splitter.calendar


class _Splitter:
    def __init__(self) -> None:
        self.calendar = CalendarText()
        self.begun = False
        self._first = 0
        self._lines: list[bytes] = []
        # The names of the component and of those in it that are open.
        self._open: list[str] = []
        self._property = b""
        self._broken = ""

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def take(self, number: int, line: bytes) -> Iterator[CalendarText]:
        """Take a line; yield the calendar if it ends with it."""
        begin, end = _BEGIN.match(line), _END.match(line)
        name = (begin or end or [b"", b""])[1].strip().decode("ascii", "replace").upper()
        if name == "VCALENDAR":
            self._close_calendar_property()
            if self._open:
                self.fail(number, f"{self._open[0]} does not end")
            self.begun = True
            if end:
                yield self.calendar
                self.calendar = CalendarText()
        elif begin:
            self._begin(number, line, name)
        elif end and self._open:
            self._end(line, name)
        elif len(self._open) == 1 or (self._open and self._open[0] == "VTIMEZONE"):
            self._lines.append(line)
        elif not self._open:
            self._calendar_property(line)

    def fail(self, number: int, detail: str) -> None:
        """Note that the open component, or this line, cannot be read."""
        if self._open and detail == TOO_LONG:
            self._broken = detail
            return
        line = self._first if self._open else number
        self.calendar.skipped.append(Skipped(line=line, kind="UNREADABLE", detail=detail))
        self._open.clear()

    def _begin(self, number: int, line: bytes, name: str) -> None:
        self._close_calendar_property()
        if self._open and self._open[0] == name == "VEVENT":
            self.fail(number, "VEVENT does not end before the next one begins")
        self.begun = True
        if not self._open:
            self._first, self._lines, self._broken = number, [line], ""
        elif self._open[0] == "VTIMEZONE":
            self._lines.append(line)
        self._open.append(name)

    def _end(self, line: bytes, name: str) -> None:
        if name not in self._open:
            self._broken = self._broken or f"END:{name} ends nothing"
            return
        while self._open.pop() != name:
            self._broken = self._broken or f"a component in it ends after END:{name}"
        if self._open:
            if self._open[0] == "VTIMEZONE":
                self._lines.append(line)
            return
        self._lines.append(line)
        component = Component(line=self._first, name=name, text=b"".join(self._lines))
        if name == "VEVENT" and self._broken:
            self.calendar.skipped.append(
                Skipped(line=self._first, kind="UNREADABLE", detail=self._broken)
            )
        elif name == "VEVENT":
            self.calendar.events.append(component)
        elif name == "VTIMEZONE":
            self.calendar.time_zones.append(component)
        else:
            self.calendar.skipped.append(
                Skipped(line=self._first, kind="NOT_AN_EVENT", detail=f"{name} is no appointment")
            )

    def _calendar_property(self, line: bytes) -> None:
        if line.startswith((b" ", b"\t")):
            self._property += line[1:].rstrip(b"\r\n")
            return
        self._close_calendar_property()
        self._property = line.rstrip(b"\r\n")

    def _close_calendar_property(self) -> None:
        found = _PROPERTY.fullmatch(self._property)
        if found:
            self.calendar.properties[found[1].decode().upper()] = found[2].strip()
        self._property = b""
