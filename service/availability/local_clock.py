"""What the clocks of a time zone show, over a range of time.

Times are microseconds since 1970-01-01T00:00Z. A local time is such a number as well, of the
time in UTC that looks the same.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

from service.availability.opening_hours import DAY, SECOND, WEEK
from service.availability.ranges import Ranges
from service.times import EPOCH, MICROSECOND

# Close to the years 1 and 9999, local times cannot be computed.
_FIRST = (datetime(1, 1, 3, tzinfo=UTC) - EPOCH) // timedelta(seconds=1)
_LAST = (datetime(9999, 12, 29, tzinfo=UTC) - EPOCH) // timedelta(seconds=1)
_DAY_SECONDS = DAY // SECOND
# Changes of offset are looked for in chunks of time, which are kept.
_CHUNK = 32 * DAY
# 1970-01-01 was a Thursday.
_MONDAY = 3 * DAY


@cache
def zone_names() -> frozenset[str]:
    """Return the names of all time zones."""
    return frozenset((resources.files("tzdata") / "zones").read_text().split())


class LocalClock:
    """The local clock from `start` to `end`, in periods in which the offset from UTC is constant.

    The first period may begin earlier, and the last one later.
    """

    def __init__(self, zone: ZoneInfo, start: int, end: int) -> None:
        self._start, self._end = start, end
        self._periods: list[int] = []
        self._offsets: list[int] = []
        for number in range(start // _CHUNK, -(-end // _CHUNK)):
            periods, offsets = _periods_of(zone, number)
            self._periods += periods
            self._offsets += offsets

    def open(self, weekly: Ranges) -> Ranges:
        """Return when the local clock shows a time that is in the ranges of the week."""
        starts: list[int] = []
        ends: list[int] = []
        for start, end, offset in self._all():
            # The Monday before, on the local clock.
            week = (start + offset + _MONDAY) // WEEK * WEEK - _MONDAY - offset
            for monday in range(week, end, WEEK):
                open_ = Ranges(
                    [monday + start for start in weekly.starts],
                    [monday + end for end in weekly.ends],
                ).within(start, end)
                starts += open_.starts
                ends += open_.ends
        return Ranges.union((starts, ends))

    def multiples(self, start: int, last: int, granularity: int) -> Iterator[range]:
        """Yield the times from `start` to `last` at which the local clock shows a multiple.

        That is a time of day which is a multiple of the granularity; midnight always is.
        """
        index = bisect_right(self._periods, start) - 1
        while start <= last:
            of_day = (start + self._offsets[index]) % DAY
            midnight = start - of_day
            first = midnight + -(-of_day // granularity) * granularity
            start = midnight + DAY
            if index + 1 < len(self._periods) and self._periods[index + 1] <= start:
                index += 1
                start = self._periods[index]
            yield range(first, min(start, last + 1), granularity)

    def _all(self) -> Iterator[tuple[int, int, int]]:
        """Yield the periods within `start` and `end`, with their offsets."""
        ends = [*self._periods[1:], self._end]
        for start, end, offset in zip(self._periods, ends, self._offsets, strict=True):
            if end > self._start and start < self._end:
                yield max(start, self._start), min(end, self._end), offset


@lru_cache(maxsize=1024)
def _periods_of(zone: ZoneInfo, number: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return the periods of a chunk of time, and their offsets.

    No zone changes its offset twice within a day, so one look per day finds all changes.
    """
    first, end = (edge * _CHUNK // SECOND for edge in (number, number + 1))
    offset = _offset(zone, first)
    periods, offsets = [first * SECOND], [offset]
    for last in range(first + _DAY_SECONDS, end + 1, _DAY_SECONDS):
        new = _offset(zone, last)
        if new == offset:
            continue
        before, after = last - _DAY_SECONDS, last
        while after - before > 1:
            middle = (before + after) // 2
            if _offset(zone, middle) == offset:
                before = middle
            else:
                after = middle
        if after < end:  # or the next chunk begins with it
            periods.append(after * SECOND)
            offsets.append(new)
        offset = new
    return periods, offsets


def _offset(zone: ZoneInfo, second: int) -> int:
    """Return the local clock's offset from UTC at a time in seconds, in microseconds."""
    time = EPOCH + timedelta(seconds=min(max(second, _FIRST), _LAST))
    offset = time.astimezone(zone).utcoffset() or timedelta()
    return offset // MICROSECOND
