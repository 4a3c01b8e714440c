"""The buckets that processes share, in PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import psycopg
import pytest

from service.errors import RateLimited
from service.limits.buckets import Buckets, RateLimit
from service.limits.limiter import RateLimiter
from service.limits.store import BucketStore
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.session import CALLER_ROLE, Timeouts

PROCESSES = 4


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[BucketStore]:
    database = Database(
        database_url,
        name="limits",
        connections=2,
        max_waiting=10,
        timeouts=Timeouts(connection=1, lock=2, statement=5),
        role=CALLER_ROLE,
        replica=False,
        metrics=Metrics(),
    )
    async with database:
        yield BucketStore(database)


async def test_processes_see_what_others_used(store: BucketStore, organization: str) -> None:
    limit = RateLimit(name="organization", requests=100, window=1000)
    one, two = Buckets(limit, monotonic), Buckets(limit, monotonic)
    for _ in range(7):
        one.take(organization, 1)
    one.apply(await store.report(limit, one.report()))
    two.take(organization, 1)
    assert two.quota(organization).remaining == 9
    two.take(organization, 1)
    two.apply(await store.report(limit, two.report()))
    assert two.quota(organization).remaining == 1


async def test_the_shared_bucket_fills_by_the_clock_of_the_database(
    store: BucketStore, database_url: str, organization: str
) -> None:
    limit = RateLimit(name="organization", requests=100, window=1000)
    name = limit.bucket_of(organization)
    assert await store.report(limit, {name: 30}) == {name: -20}

    def back(seconds: float) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "UPDATE request_buckets SET counted_at = counted_at - make_interval(secs => %s)"
                " WHERE name = %s",
                (seconds, name),
            )

    back(250)
    assert (await store.report(limit, {name: 1}))[name] == pytest.approx(4, abs=0.5)
    back(36000)
    assert await store.report(limit, {name: 1}) == {name: 9}
    back(-60)  # a clock that was set back: nothing is filled
    assert await store.report(limit, {name: 1}) == {name: 8}
    back(7260)
    await store.forget()
    assert await store.report(limit, {name: 1}) == {name: 9}


async def test_several_processes_together_keep_the_limit(
    store: BucketStore, organization: str
) -> None:
    limit = RateLimit(name="organization", requests=1000, window=10)
    limiters = [RateLimiter(store, credential=None, organization=limit) for _ in range(PROCESSES)]
    runs = [asyncio.create_task(limiter.run()) for limiter in limiters]
    admitted = 0
    try:

        async def demand(limiter: RateLimiter) -> None:
            nonlocal admitted
            while True:
                for _ in range(3):  # with PROCESSES, twelve times the limit
                    try:
                        limiter.admit(credential=None, organization=organization, cost=1)
                    except RateLimited as error:
                        assert error.retry_after > 0
                    else:
                        admitted += 1
                await asyncio.sleep(0.01)

        demands = [asyncio.create_task(demand(limiter)) for limiter in limiters]
        began = monotonic()
        await asyncio.sleep(10)
        for task in demands:
            task.cancel()
        elapsed = monotonic() - began
    finally:
        for task in runs:
            task.cancel()
    assert 0.8 < admitted / (limit.rate * elapsed) < 1.2
