"""Computes when resources are free, from the ranges that are occupied."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from zoneinfo import ZoneInfo

from service.availability.local_clock import LocalClock
from service.availability.opening_hours import WEEK
from service.availability.ranges import Ranges

MAX_STARTS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """When one resource, or all of them together, are busy and free. `starts` as in the query."""

    resource_id: str | None
    busy: Ranges
    free: Ranges
    starts: list[int]


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

    def answer(self, occupied: Mapping[str, Ranges]) -> tuple[list[Availability], bool]:
        """Return the availability for each resource, and whether there are more starts.

        `occupied` has the ranges of each resource that intersect the range of the query,
        extended by the buffers.
        """
        clock = LocalClock(self.zone, self.start, self.end)
        closed = (
            Ranges()
            if self.opening_hours is None
            else clock.open(self.opening_hours).gaps(self.start, self.end)
        )
        if self.together:
            all_of_them = ((ranges.starts, ranges.ends) for ranges in occupied.values())
            found = [self._one(None, Ranges.union(*all_of_them), closed)]
        else:
            found = [self._one(resource, ranges, closed) for resource, ranges in occupied.items()]
        return found, self._add_starts(found, clock)

    def _one(self, resource_id: str | None, occupied: Ranges, closed: Ranges) -> Availability:
        # An offer from s to e occupies [s - before, e + after) together with its buffers. That
        # is free exactly if [s, e) is free of the occupied ranges, each extended by the opposite
        # buffer at its ends.
        blocked = occupied.widened(self.buffer_after, self.buffer_before)
        if closed.starts:
            blocked = Ranges.union((blocked.starts, blocked.ends), (closed.starts, closed.ends))
        return Availability(
            resource_id=resource_id,
            busy=occupied.within(self.start, self.end),
            free=blocked.gaps(self.start, self.end).at_least(self.duration),
            starts=[],
        )

    def _add_starts(self, found: list[Availability], clock: LocalClock) -> bool:
        """Add the earliest starts of all. Returns whether there are more."""
        if self.granularity is None:
            return False
        every = [self._starts(each.free, clock, self.granularity) for each in found]
        if sum(map(len, every)) <= MAX_STARTS:
            for each, starts in zip(found, every, strict=True):
                each.starts.extend(starts)
            return False
        in_order = sorted(chain.from_iterable(every))
        # The first that does not fit. Of starts at the same time, those of the first resources fit.
        end = in_order[MAX_STARTS]
        left = MAX_STARTS - bisect_left(in_order, end)
        for each, starts in zip(found, every, strict=True):
            earlier = bisect_left(starts, end)
            fits = left > 0 and earlier < len(starts) and starts[earlier] == end
            each.starts.extend(starts[: earlier + fits])
            left -= fits
        return True

    def _starts(self, free: Ranges, clock: LocalClock, granularity: int) -> list[int]:
        """Return the first starts, at most one more than fit."""
        starts: list[int] = []
        for start, end in zip(free.starts, free.ends, strict=True):
            for times in clock.multiples(start, end - self.duration, granularity):
                starts += times[: MAX_STARTS + 1 - len(starts)]
                if len(starts) > MAX_STARTS:
                    return starts
        return starts
