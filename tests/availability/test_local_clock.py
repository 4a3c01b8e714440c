"""The local clock of every zone, and its changes."""

import struct
from datetime import UTC, datetime, timedelta
from importlib import resources
from itertools import chain, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.availability.local_clock import LocalClock, zone_names
from service.availability.opening_hours import DAY, MINUTE, SECOND
from service.availability.ranges import Ranges

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Twenty years around the changes of zones in 2011.
FIRST, LAST = 946_684_800, 1_577_836_800


def changes_of(name: str) -> list[int]:
    """The times in a file of the zone's changes (RFC 9636), in seconds."""
    content = (resources.files("tzdata") / "zoneinfo" / name).read_bytes()

    def counts(at: int) -> tuple[int, ...]:
        return struct.unpack(">20x6l", content[at : at + 44])

    of_utc, of_standard, leaps, times, types, characters = counts(0)
    second = 44 + times * 5 + types * 6 + characters + leaps * 8 + of_standard + of_utc
    number = counts(second)[3]
    return list(struct.unpack_from(f">{number}q", content, second + 44))


def test_no_clock_changes_twice_within_a_day() -> None:
    apart = [
        later - earlier
        for name in zone_names()
        for changes in [changes_of(name)]
        for earlier, later in pairwise(changes)
    ]

    assert len(apart) > 10_000
    assert min(apart) > DAY // SECOND


@pytest.mark.parametrize(
    "name", ["Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Monrovia", "UTC"]
)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_multiples_are_those_that_the_clock_shows(name: str, data: st.DataObject) -> None:
    """Seconds are compared with `datetime`, one by one."""
    zone = ZoneInfo(name)
    near = [change for change in changes_of(name) if FIRST < change < LAST] or [FIRST]
    start = data.draw(st.sampled_from(near)) + data.draw(st.integers(-7200, 7200))
    last = start + data.draw(st.integers(-1, 10_000))
    granularity = data.draw(st.sampled_from([1, 60, 300, 420, 1800, 3600, 86_400]))
    clock = LocalClock(zone, (start - 86_400) * SECOND, (start + 86_400) * SECOND)

    found = clock.multiples(start * SECOND, last * SECOND, granularity * SECOND)

    expected = []
    for second in range(start, last + 1):
        local = datetime.fromtimestamp(second, zone)
        if (local.hour * 3600 + local.minute * 60 + local.second) % granularity == 0:
            expected.append(second * SECOND)
    assert [time for times in found for time in times] == expected


def test_the_open_day_that_a_zone_skipped_has_no_time() -> None:
    """Samoa went from Thursday, 29 December 2011 to Saturday."""
    start = (datetime(2011, 12, 26, 10, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    clock = LocalClock(ZoneInfo("Pacific/Apia"), start, start + 7 * DAY)
    friday, saturday = ([day * DAY] for day in (4, 5))
    thursday_end = (datetime(2011, 12, 30, 10, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)

    assert clock.open(Ranges(friday, saturday)).within(start, start + 6 * DAY) == Ranges()
    assert clock.open(Ranges(saturday, [6 * DAY])).within(start, start + 6 * DAY) == Ranges(
        [thursday_end], [thursday_end + DAY]
    )


def test_offsets_with_seconds_are_exact() -> None:
    """Liberia was 44 minutes and 30 seconds behind until 7 January 1972."""
    start = (datetime(1972, 1, 6, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    clock = LocalClock(ZoneInfo("Africa/Monrovia"), start, start + 3 * DAY)

    times = chain.from_iterable(clock.multiples(start, start + 2 * 60 * MINUTE, 60 * MINUTE))
    first = start + 44 * MINUTE + 30 * SECOND
    assert [*times] == [first, first + 60 * MINUTE]
