"""Which pages the cache returns, keeps and evicts, with moments from a real database."""

from collections.abc import AsyncIterator

import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc

from service.metrics import Metrics
from service.postgres.database import Database
from service.reads import page_cache
from service.reads.moments import NEVER_WRITTEN, Moment, Moments
from service.reads.page_cache import MAX_AGE, MAX_CACHED_PAGE_BYTES, PageCache
from tests.api import Organization
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
        yield Moments(database, max_waiting=10)


@pytest.fixture
def cache(moments: Moments) -> PageCache:
    return PageCache(moments)


def page(title: str = "") -> rpc.ListAppointmentsResponse:
    return rpc.ListAppointmentsResponse(appointments=[pb.Appointment(title=title)])


async def found(cache: PageCache, request: bytes, org: Organization) -> str | None:
    """Return the title on the cached page, or None."""
    cached = await cache.current(request, org.id)
    return cached.response.appointments[0].title if cached else None


async def test_a_page_is_given_until_its_organization_changes(
    cache: PageCache, moments: Moments, org: Organization
) -> None:
    assert await found(cache, b"r", org) is None
    never_written = await moments.of(org.id)
    assert never_written == NEVER_WRITTEN
    cache.put(b"r", never_written, page("empty"))
    assert await found(cache, b"r", org) == "empty"
    assert await found(cache, b"another", org) is None
    org.upsert("a", 0, 1)
    assert await found(cache, b"r", org) is None
    cache.put(b"r", await moments.of(org.id), page("one"))
    assert await found(cache, b"r", org) == "one"
    org.upsert("a", 0, 1)  # changes nothing
    assert await found(cache, b"r", org) == "one"
    org.cancel("a")
    assert await found(cache, b"r", org) is None


async def test_a_page_of_an_earlier_moment_is_not_given(
    cache: PageCache, moments: Moments, org: Organization
) -> None:
    """A page read during a write, and one of a database that was restored since."""
    org.upsert("a", 0, 1)
    revision, recorded_at = before = await moments.of(org.id)
    org.upsert("b", 1, 2)
    cache.put(b"r", before, page())
    assert await found(cache, b"r", org) is None
    other_time: Moment = (revision + 1, recorded_at)
    cache.put(b"r", other_time, page())
    assert await found(cache, b"r", org) is None


async def test_a_page_is_given_for_so_long_at_most(
    cache: PageCache, moments: Moments, org: Organization, clock: Clock
) -> None:
    """The age limit is for direct changes in the database, which no revision shows."""
    cache.put(b"r", NEVER_WRITTEN, page("old"))
    clock.now += MAX_AGE
    assert await found(cache, b"r", org) == "old"
    clock.now += 0.1
    assert await found(cache, b"r", org) is None
    cache.put(b"r", NEVER_WRITTEN, page("new"))
    assert await found(cache, b"r", org) == "new"


async def test_a_large_page_is_not_kept(cache: PageCache, org: Organization) -> None:
    small = page("x" * (MAX_CACHED_PAGE_BYTES // 4 - 100))
    large = page("x" * (MAX_CACHED_PAGE_BYTES // 4))
    cache.put(b"small", NEVER_WRITTEN, small)
    cache.put(b"large", NEVER_WRITTEN, large)
    assert await found(cache, b"small", org) is not None
    assert await found(cache, b"large", org) is None


async def test_the_least_recently_used_are_dropped_first(
    cache: PageCache, org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * page("0").ByteSize() + 1
    monkeypatch.setattr(page_cache, "MAX_BYTES", 3 * size)
    for name in ("1", "2", "3"):
        cache.put(name.encode(), NEVER_WRITTEN, page(name))
    assert await found(cache, b"1", org) == "1"
    cache.put(b"4", NEVER_WRITTEN, page("4"))
    assert [await found(cache, name, org) for name in (b"1", b"2", b"3", b"4")] == [
        "1",
        None,
        "3",
        "4",
    ]
    # A page that replaces another takes no additional room.
    for _ in range(5):
        cache.put(b"4", NEVER_WRITTEN, page("5"))
    assert [await found(cache, name, org) for name in (b"1", b"3", b"4")] == ["1", "3", "5"]
