"""What the clocks of a time zone show, over a range of time.

Times are microseconds since 1970-01-01T00:00Z. A local time is such a number as well, of the
time in UTC that looks the same.
"""

from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo

from service.availability.opening_hours import DAY, SECOND, WEEK
from service.availability.ranges import Ranges
from service.times import EPOCH, MICROSECOND

# Close to the years 1 and 9999, local times cannot be computed.
_FIRST = (datetime(1, 1, 3, tzinfo=UTC) - EPOCH) // timedelta(seconds=1)
_LAST = (datetime(9999, 12, 29, tzinfo=UTC) - EPOCH) // timedelta(seconds=1)
_DAY_SECONDS = DAY // SECOND
# 1970-01-01 was a Thursday.
_MONDAY = 3 * DAY


@cache
def zone_names() -> frozenset[str]:
    """Return the names of all time zones."""
    return frozenset((resources.files("tzdata") / "zones").read_text().split())


class LocalClock:
    """The local clock from `start` to `end`, as periods in which the offset from UTC is constant.

    No zone changes its offset twice within a day, so one look per day finds all changes.
    """

    def __init__(self, zone: ZoneInfo, start: int, end: int) -> None:
        self._end = end
        first = start // SECOND
        self._periods = [start]
        offset = _offset(zone, first)
        self._offsets = [offset]
        for last in range(first + _DAY_SECONDS, end // SECOND + _DAY_SECONDS, _DAY_SECONDS):
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
            self._periods.append(after * SECOND)
            self._offsets.append(new)
            offset = new

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
        return zip(self._periods, [*self._periods[1:], self._end], self._offsets, strict=True)


def _offset(zone: ZoneInfo, second: int) -> int:
    """Return the local clock's offset from UTC at a time in seconds, in microseconds."""
    time = EPOCH + timedelta(seconds=min(max(second, _FIRST), _LAST))
    offset = time.astimezone(zone).utcoffset() or timedelta()
    return offset // MICROSECOND
