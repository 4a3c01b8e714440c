"""A model of availability that looks at every minute by itself, and at every offer by itself.

It shares no code with the service. Everything in it begins and ends at whole minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import accumulate
from zoneinfo import ZoneInfo

DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
MINUTE = timedelta(minutes=1)
# Since the epoch.
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class OpenOn:
    """Opening hours on some days of the week, 0 for Monday; past midnight if `end` < `start`.

    In minutes after midnight, `end` at most 1,440.
    """

    days: frozenset[int]
    start: int
    end: int

    def text(self) -> str:
        days = ",".join(DAYS[day] for day in sorted(self.days))
        return f"{days} {_clock(self.start)}-{_clock(self.end)}"

    def contains(self, local: datetime) -> bool:
        """Return whether it is open when a local clock shows this."""
        minute = local.hour * 60 + local.minute
        today = local.weekday() in self.days
        yesterday = (local.weekday() - 1) % 7 in self.days
        if self.start < self.end:
            return today and self.start <= minute < self.end
        return (today and minute >= self.start) or (yesterday and minute < self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A query, in minutes since the epoch and in minutes."""

    start: int
    end: int
    zone: str
    together: bool = False
    duration: int | None = None
    granularity: int | None = None
    opening_hours: tuple[OpenOn, ...] = ()
    buffer_before: int = 0
    buffer_after: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    busy: list[Span]
    free: list[Span]
    starts: list[int]


def answer(question: Question, appointments: Sequence[Sequence[Span]]) -> tuple[list[Found], bool]:
    """Return what each resource, or all together, should be found to have; and `moreStarts`."""
    q = question
    if q.together:
        appointments = [[span for spans in appointments for span in spans]]
    locals_ = [
        (datetime(1970, 1, 1, tzinfo=UTC) + minute * MINUTE).astimezone(ZoneInfo(q.zone))
        for minute in range(q.start, q.end)
    ]
    length = q.duration or q.granularity or 1
    unopened = _counts(
        [
            bool(q.opening_hours) and not any(hours.contains(local) for hours in q.opening_hours)
            for local in locals_
        ]
    )
    found = []
    for spans in appointments:
        # Minutes from `buffer_before` before the start to `buffer_after` after the end.
        first = q.start - q.buffer_before
        occupied = [False] * (q.end + q.buffer_after - first)
        for start, end in spans:
            for minute in range(max(start, first), min(end, q.end + q.buffer_after)):
                occupied[minute - first] = True
        taken = _counts(occupied)
        offers = [
            start
            for start in range(q.start, q.end - length + 1)
            if unopened[start - q.start] == unopened[start - q.start + length]
            and taken[start - q.start]
            == taken[start - q.start + q.buffer_before + length + q.buffer_after]
        ]
        offered = [False] * (q.end - q.start)
        covered_to = q.start
        for start in offers:
            for minute in range(max(start, covered_to), start + length):
                offered[minute - q.start] = True
            covered_to = start + length
        busy = occupied[q.buffer_before : q.buffer_before + q.end - q.start]
        starts = [
            start
            for start in offers
            if q.granularity
            and _since_midnight(locals_[start - q.start]) % timedelta(minutes=q.granularity)
            == timedelta(0)
        ]
        found.append(Found(_runs(busy, q.start), _runs(offered, q.start), starts))
    every = sorted((start, index) for index, each in enumerate(found) for start in each.starts)
    for each in found:
        each.starts.clear()
    for start, index in every[:1000]:
        found[index].starts.append(start)
    return found, len(every) > 1000


def alternatives(
    appointments: Sequence[Span], start: int, length: int, most: int, *, within: int
) -> list[Span]:
    """Return the first free ranges of a length from a minute on, which do not overlap.

    The last one starts at most `within` minutes later. `appointments` are those of all the
    resources that are needed.
    """
    found: list[Span] = []
    occupied = [False] * (within + length)
    for first, end in appointments:
        for minute in range(max(first, start), min(end, start + within + length)):
            occupied[minute - start] = True
    taken = _counts(occupied)
    minute = 0
    while minute <= within and len(found) < most:
        if taken[minute + length] == taken[minute]:
            found.append((start + minute, start + minute + length))
            minute += length
        else:
            minute += 1
    return found


def _since_midnight(local: datetime) -> timedelta:
    return datetime.combine(date.min, local.time()) - datetime.combine(date.min, time())


def _counts(flags: Sequence[bool]) -> list[int]:
    """Return how many of the first 0, 1, 2, ... flags are set."""
    return list(accumulate(flags, initial=0))


def _runs(flags: Sequence[bool], first: int) -> list[Span]:
    runs: list[Span] = []
    for minute, flag in enumerate(flags, first):
        if not flag:
            continue
        if runs and runs[-1][1] == minute:
            runs[-1] = (runs[-1][0], minute + 1)
        else:
            runs.append((minute, minute + 1))
    return runs


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
