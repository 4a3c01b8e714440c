"""Who may move the cursors of the events: only the worker in charge, whatever comes between."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import psycopg
import pytest

from service.database import Database, Timeouts
from service.events.store import EventStore
from service.metrics import Metrics
from tests.observing import until

TIMEOUTS = Timeouts(connection=5.0, lock=20.0, statement=20.0)


@pytest.fixture
def consumer() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
async def store(database_url: str, consumer: str) -> AsyncIterator[EventStore]:
    """Two workers share it here: what tells them apart is the fence."""
    database = Database(
        database_url,
        name="test",
        connections=2,
        max_waiting=10,
        timeouts=TIMEOUTS,
        replica=False,
        metrics=Metrics(),
    )
    async with database:
        yield EventStore(database, consumer)


def cursor(database_url: str, consumer: str) -> dict[str, int]:
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT organization_id, revision FROM event_cursors WHERE consumer = %s", [consumer]
        ).fetchall()
    return dict(found)


async def test_one_is_in_charge_until_its_lease_ends(store: EventStore) -> None:
    fence = await store.take(30)
    assert fence == 1
    assert await store.take(30) is None
    assert await store.renew(fence, 0)
    assert await store.take(30) == 2
    assert not await store.renew(fence, 30)


async def test_the_one_that_was_overtaken_moves_no_cursor(
    store: EventStore, database_url: str, consumer: str
) -> None:
    old = await store.take(0)
    assert old is not None
    assert await store.advance({"a": 3, "b": 1}, old, 0)
    new = await store.take(30)
    assert new is not None
    assert not await store.advance({"a": 9, "c": 1}, old, 30)
    assert cursor(database_url, consumer) == {"a": 3, "b": 1}
    assert await store.advance({"a": 5}, new, 30)
    assert await store.advance({"a": 4}, new, 30)  # never back
    assert cursor(database_url, consumer) == {"a": 5, "b": 1}


async def test_a_takeover_under_way_comes_before_a_cursor(
    store: EventStore, database_url: str, consumer: str
) -> None:
    old = await store.take(0)
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
