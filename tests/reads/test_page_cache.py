"""Which pages the cache returns, keeps and evicts, with moments from a real database."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb

from service.metrics import Metrics
from service.postgres.database import Database
from service.reads import page_cache
from service.reads.moments import NEVER_WRITTEN, Moment, Moments, Now
from service.reads.page_cache import MAX_AGE, PageCache
from tests.api import Organization, soon
from tests.databases import database_of


class Clock:
    """The clock of the cache, which the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(page_cache, "time", clock)
    return clock


@pytest.fixture
async def moments(database_url: str) -> AsyncIterator[Moments]:
    database = database_of(Database, database_url, Metrics(), max_waiting=10)
    async with database:
        yield Moments(database)


@pytest.fixture
def cache(moments: Moments) -> PageCache[str]:
    return PageCache(moments, max_page_bytes=100)


async def found(cache: PageCache[str], request: bytes, org: Organization) -> str | None:
    """Return the cached page, or None."""
    cached = await cache.current(request, org.id)
    return cached.response if cached else None


async def test_a_page_is_given_until_its_organization_changes(
    cache: PageCache[str], moments: Moments, org: Organization
) -> None:
    assert await found(cache, b"r", org) is None
    assert await moments.of(org.id) == (NEVER_WRITTEN, None)
    cache.put(b"r", NEVER_WRITTEN, None, "empty", size=1)
    assert await found(cache, b"r", org) == "empty"
    assert await found(cache, b"another", org) is None
    org.upsert("a", 0, 1)
    assert await found(cache, b"r", org) is None
    moment, _ = await moments.of(org.id)
    cache.put(b"r", moment, None, "one", size=1)
    assert await found(cache, b"r", org) == "one"
    org.upsert("a", 0, 1)  # changes nothing
    assert await found(cache, b"r", org) == "one"
    org.cancel("a")
    assert await found(cache, b"r", org) is None


async def test_a_page_of_an_earlier_moment_is_not_given(
    cache: PageCache[str], moments: Moments, org: Organization
) -> None:
    """A page read during a write, and one of a database that was restored since."""
    org.upsert("a", 0, 1)
    before, _ = await moments.of(org.id)
    revision, recorded_at = before
    org.upsert("b", 1, 2)
    cache.put(b"r", before, None, "", size=1)
    assert await found(cache, b"r", org) is None
    other_time: Moment = (revision + 1, recorded_at)
    cache.put(b"r", other_time, None, "", size=1)
    assert await found(cache, b"r", org) is None


async def test_a_page_is_given_until_its_first_hold_expires(
    cache: PageCache[str], moments: Moments, org: Organization
) -> None:
    org.upsert("a", 0, 1)
    moment, clock = await moments.of(org.id)
    assert clock is not None
    expiry = clock + timedelta(seconds=1)
    cache.put(b"r", moment, expiry, "held", size=1)
    now = await moments.of(org.id)
    given = 0
    while now.shows(moment, expiry):
        title = await found(cache, b"r", org)
        now = await moments.of(org.id)
        if now.shows(moment, expiry):
            assert title == "held"
            given += 1
    assert given
    assert await found(cache, b"r", org) is None


def test_a_list_with_a_hold_is_given_from_memory_until_it_expires(
    org: Organization, database_url: str
) -> None:
    org.upsert("a", 0, 1, title="old", hold_until=soon(1.5))
    read = org.list_page().appointments
    with psycopg.connect(database_url, autocommit=True) as sql:
        # By hand, which no revision shows.
        sql.execute("UPDATE appointments SET title = 'new' WHERE organization_id = %s", (org.id,))
    while read and org.get("a").state == pb.Appointment.HELD:
        assert read[0].title == "old"
        read = org.list_page().appointments
    assert list(org.list_page().appointments) == []
    [expired] = org.list_page(include_cancelled=True).appointments
    assert (expired.state, expired.title) == (pb.Appointment.EXPIRED, "new")


def test_what_was_read_is_valid_until_a_time_that_is_not_included() -> None:
    time = datetime(2030, 1, 7, tzinfo=UTC)
    now = Now((1, time), time)
    assert now.shows((1, time), None)
    assert now.shows((1, time), time + timedelta(microseconds=1))
    assert not now.shows((1, time), time)
    assert not now.shows((2, time), None)


async def test_a_page_is_given_for_so_long_at_most(
    cache: PageCache[str], moments: Moments, org: Organization, clock: Clock
) -> None:
    """The age limit is for direct changes in the database, which no revision shows."""
    cache.put(b"r", NEVER_WRITTEN, None, "old", size=1)
    clock.now += MAX_AGE
    assert await found(cache, b"r", org) == "old"
    clock.now += 0.1
    assert await found(cache, b"r", org) is None
    cache.put(b"r", NEVER_WRITTEN, None, "new", size=1)
    assert await found(cache, b"r", org) == "new"


async def test_a_large_page_is_not_kept(cache: PageCache[str], org: Organization) -> None:
    cache.put(b"small", NEVER_WRITTEN, None, "s", size=95)
    cache.put(b"large", NEVER_WRITTEN, None, "l", size=96)
    assert await found(cache, b"small", org) == "s"
    assert await found(cache, b"large", org) is None


async def test_the_least_recently_used_are_dropped_first(
    moments: Moments, org: Organization
) -> None:
    cache: PageCache[str] = PageCache(moments, max_bytes=3 * 11)
    for name in ("1", "2", "3"):
        cache.put(name.encode(), NEVER_WRITTEN, None, name, size=10)
    assert await found(cache, b"1", org) == "1"
    cache.put(b"4", NEVER_WRITTEN, None, "4", size=10)
    assert [await found(cache, name, org) for name in (b"1", b"2", b"3", b"4")] == [
        "1",
        None,
        "3",
        "4",
    ]
    # A page that replaces another takes no additional room.
    for _ in range(5):
        cache.put(b"4", NEVER_WRITTEN, None, "5", size=10)
    assert [await found(cache, name, org) for name in (b"1", b"3", b"4")] == ["1", "3", "5"]
