"""Computes when resources are free, from the ranges that are occupied."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, repeat
from zoneinfo import ZoneInfo

from service.availability.local_clock import LocalClock
from service.availability.opening_hours import WEEK
from service.availability.ranges import Ranges

MAX_STARTS = 1_000


# The first place, and the one after the last.
Slice = tuple[int, int]
# Before and after all times that Python has.
_PAST, _FUTURE = -(1 << 60), 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """When one resource, or all of them together, are busy and free.

    `starts` are slices of the answer's candidates.
    """

    resource_id: str | None
    busy: Ranges
    free: Ranges
    starts: Sequence[Slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found, and the times of which resources have slices as their starts, in order.

    `more_starts` is whether there are more than are given.
    """

    found: Sequence[Availability]
    candidates: Sequence[int]
    more_starts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityQuery:
    """What a caller looks for in `[start, end)`. Times and lengths are in microseconds.

    `opening_hours` are the ranges of a week, None for always. If `together`, all resources
    have to be free at once.
    """

    start: int
    end: int
    together: bool
    duration: int
    granularity: int | None
    opening_hours: Ranges | None
    zone: ZoneInfo
    buffer_before: int
    buffer_after: int

    @property
    def openings(self) -> int:
        """The largest number of times that the opening hours open."""
        if self.opening_hours is None:
            return 0
        return len(self.opening_hours.starts) * ((self.end - self.start) // WEEK + 2)

    def answer(self, occupied: Mapping[str, Ranges]) -> Answer:
        """Return the availability for each resource.

        `occupied` has the ranges of each resource that intersect the range of the query,
        extended by the buffers.
        """
        clock = LocalClock(self.zone, self.start, self.end)
        closed = self._closed(clock)
        by_resource: Sequence[tuple[str | None, Ranges]] = list(occupied.items())
        if self.together:
            by_resource = [(None, Ranges.union(*occupied.values()))]
        free = [self._free(ranges, closed) for _, ranges in by_resource]
        candidates, starts, more = self._starts(free, clock)
        return Answer(
            found=[
                Availability(
                    resource_id=resource_id,
                    busy=ranges.within(self.start, self.end),
                    free=free,
                    starts=starts,
                )
                for (resource_id, ranges), free, starts in zip(
                    by_resource, free, starts, strict=True
                )
            ],
            candidates=candidates,
            more_starts=more,
        )

    def _closed(self, clock: LocalClock) -> Ranges:
        """Return when nothing can be offered, all time outside of the query's range included."""
        if self.opening_hours is None:
            return Ranges([_PAST, self.end], [self.start, _FUTURE])
        opened = clock.open(self.opening_hours)
        return Ranges([_PAST, *opened.ends], [*opened.starts, _FUTURE])

    def _free(self, occupied: Ranges, closed: Ranges) -> Ranges:
        # An offer from s to e occupies [s - before, e + after) together with its buffers. That
        # is free exactly if [s, e) is free of the occupied ranges, each extended by the opposite
        # buffer at its ends.
        starts, ends = occupied
        if self.buffer_after:
            starts = [start - self.buffer_after for start in starts]
        if self.buffer_before:
            ends = [end + self.buffer_before for end in ends]
        return Ranges.gaps((starts, ends), closed, at_least=max(self.duration, 1))

    def _starts(
        self, free: Sequence[Ranges], clock: LocalClock
    ) -> tuple[Sequence[int], Sequence[Sequence[Slice]], bool]:
        """Return candidates, the slices that are the starts of each, and whether there are more.

        A start is a candidate in a free range, early enough for the duration.
        """
        if self.granularity is None:
            return [], [()] * len(free), False
        earliest = list(chain.from_iterable([each.starts for each in free]))
        latest = [end - self.duration for each in free for end in each.ends]
        candidates = self._candidates(
            Ranges.union((earliest, [time + 1 for time in latest])), clock, self.granularity
        )
        firsts = list(map(bisect_left, repeat(candidates), earliest))
        ends = list(map(bisect_right, repeat(candidates), latest))
        slices = zip(firsts, ends, strict=True)
        by_resource = [list(islice(slices, len(each.starts))) for each in free]
        if sum(ends) - sum(firsts) <= MAX_STARTS:
            return candidates, by_resource, False
        return candidates, _earliest(by_resource, firsts, ends), True

    def _candidates(self, ranges: Ranges, clock: LocalClock, granularity: int) -> list[int]:
        """Return the first multiples of the granularity, at most one more than fit."""
        found: list[int] = []
        for start, end in zip(*ranges, strict=True):
            for times in clock.multiples(start, end - 1, granularity):
                found += times[: MAX_STARTS + 1 - len(found)]
                if len(found) > MAX_STARTS:
                    return found
        return found


def _earliest(
    several: Sequence[Sequence[Slice]], firsts: Iterable[int], ends: Sequence[int]
) -> Sequence[Sequence[Slice]]:
    """Return the earliest places in several lists of slices, as many as fit.

    `firsts` and `ends` are those of all slices. Of the same place in several lists, the first ones
    fit.
    """
    changes = [0] * (max(ends) + 1)
    for first in firsts:
        changes[first] += 1
    for end in ends:
        changes[end] -= 1
    # How many there are up to each place, and the first place that does not fit.
    counts = list(accumulate(accumulate(changes)))
    last = bisect_right(counts, MAX_STARTS)
    left = MAX_STARTS - (counts[last - 1] if last else 0)
    earliest = []
    for slices in several:
        fitting = list(slices[: bisect_left(slices, (last + 1,))])
        if fitting and fitting[-1][1] > last:
            fits = left > 0
            left -= fits
            fitting[-1] = fitting[-1][0], last + fits
        earliest.append(fitting)
    return earliest
