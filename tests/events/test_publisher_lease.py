"""Only the worker that holds the publisher's lease moves the cursors of events."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import psycopg
import pytest

from service.amqp import Broker
from service.events.publisher import EventPublisher
from service.events.rabbitmq import declare_exchange
from service.events.store import EventStore, Scan
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.notifications import Wakeup
from service.postgres.session import WORKER_ROLE, Timeouts
from tests.conftest import CreateDatabase
from tests.observing import until

TIMEOUTS = Timeouts(connection=5.0, lock=20.0, statement=20.0)


@pytest.fixture
def consumer() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
async def store(database_url: str, consumer: str) -> AsyncIterator[EventStore]:
    """A store that two workers share. Their fences differ."""
    async with database(database_url) as opened:
        yield EventStore(opened, consumer)


def database(url: str) -> Database:
    return Database(
        url,
        name="test",
        connections=2,
        max_waiting=10,
        timeouts=TIMEOUTS,
        role=WORKER_ROLE,
        replica=False,
        metrics=Metrics(),
    )


def cursor(database_url: str, consumer: str) -> dict[str, int]:
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT organization_id, revision FROM event_cursors WHERE consumer = %s", [consumer]
        ).fetchall()
    return dict(found)


async def test_one_worker_holds_the_lease_until_it_ends(store: EventStore) -> None:
    fence = await store.acquire(30)
    assert fence == 1
    assert await store.acquire(30) is None
    assert await store.renew(fence, 0)
    assert await store.acquire(30) == 2
    assert not await store.renew(fence, 30)


async def test_a_released_lease_is_not_taken_back_by_a_late_renewal(store: EventStore) -> None:
    fence = await store.acquire(30)
    assert fence is not None
    await store.release(fence)
    assert not await store.renew(fence, 30)
    assert await store.acquire(30) is not None


async def test_a_worker_that_lost_the_lease_moves_no_cursor(
    store: EventStore, database_url: str, consumer: str
) -> None:
    old = await store.acquire(0)
    assert old is not None
    assert await store.advance({"a": 3, "b": 1}, old, 0)
    new = await store.acquire(30)
    assert new is not None
    assert not await store.advance({"a": 9, "c": 1}, old, 30)
    assert cursor(database_url, consumer) == {"a": 3, "b": 1}
    assert await store.advance({"a": 5}, new, 30)
    assert await store.advance({"a": 4}, new, 30)  # never back
    assert cursor(database_url, consumer) == {"a": 5, "b": 1}


async def test_a_concurrent_takeover_precedes_a_move_of_the_cursor(
    store: EventStore, database_url: str, consumer: str
) -> None:
    old = await store.acquire(0)
    assert old is not None
    with psycopg.connect(database_url) as takeover:
        takeover.execute(
            "UPDATE event_publishers SET fence = fence + 1 WHERE consumer = %s", [consumer]
        )
        advance = asyncio.create_task(store.advance({"a": 9}, old, 30))

        def waits() -> bool:
            row = takeover.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
            ).fetchone()
            return row is not None and row[0] == 1

        await asyncio.to_thread(until, waits)
        takeover.commit()
    assert not await advance
    assert cursor(database_url, consumer) == {}


class SlowStore(EventStore):
    """A database in which a scan of some organizations is slow."""

    async def scan(self, after: str) -> Scan:
        await asyncio.sleep(0.6)
        return await super().scan(after)


async def test_a_scan_that_takes_longer_than_the_lease_keeps_it(
    create_database: CreateDatabase, consumer: str
) -> None:
    url = create_database()
    with psycopg.connect(url) as connection:
        for table, columns in (
            ("organizations", "organization_id, revision, recorded_at"),
            ("event_cursors", "organization_id, revision, consumer"),
        ):
            # Three looks, at 10,000 organizations each, and nothing to publish.
            connection.execute(
                f"INSERT INTO {table} ({columns}) SELECT n::text, 1, %s"
                " FROM generate_series(1, 25000) AS n".encode(),
                ["now" if table == "organizations" else consumer],
            )
    async with database(url) as opened:
        store = SlowStore(opened, consumer)
        broker = Broker("amqp://127.0.0.1:1", name="test", timeout=1, declare=declare_exchange)
        publisher = EventPublisher(store, broker, Metrics(), Wakeup(), interval=0.2, lease=1.5)
        running = asyncio.create_task(publisher.run())
        begun = time.monotonic()
        while await store.acquire(0) is not None:
            assert time.monotonic() < begun + 10
            await asyncio.sleep(0.05)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert await store.acquire(1.5) is None
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait({running})
        assert await store.acquire(30) is not None
