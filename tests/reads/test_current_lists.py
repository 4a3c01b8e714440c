"""Lists of the current state share statements, and show what a statement of their own shows."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, LiteralString

import psycopg
import pytest

from service.metrics import Metrics
from service.postgres.rows import Stored
from service.reads.current import MOST_LISTED, MOST_LISTS
from service.reads.store import Page, ReadStore
from service.reads.window import Window
from tests.api import MORNING, Organization
from tests.conftest import CreateDatabase
from tests.databases import database_of
from tests.reads.test_current import Counting

START = datetime(2030, 1, 1, tzinfo=UTC)
RESOURCES = ["", "room 1", "room 2"]
ORGANIZATIONS = [f"organization {number}" for number in range(4)]
IDS = [f"appointment {number}" for number in range(40)]
WRITES = 120
LISTS = 150


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Counting]:
    async with database_of(Counting, database_url, Metrics(), max_waiting=200) as database:
        yield database


async def listed(
    reads: ReadStore, organization_id: str, window: Window, *, limit: int, alone: bool = False
) -> Page[Stored]:
    """Return a list. With any `min_revision` it is a statement of its own."""
    return await reads.list(
        organization_id,
        window,
        after=None,
        limit=limit,
        as_of=None,
        at=None,
        min_revision=0 if alone else None,
    )


def shown(page: Page[Stored]) -> tuple[object, ...]:
    return [each.appointment for each in page.items], page.moment


def window(start: datetime, end: datetime, resource_id: str | None = None) -> Window:
    return Window(resource_id=resource_id, start=start, end=end, include_cancelled=False)


def apply(connection: psycopg.Connection, organization: str, write: dict[str, Any]) -> None:
    connection.execute(
        "SELECT * FROM apply_writes(%s, %s)", (organization, json.dumps([write]))
    ).fetchall()


def random_write(random: Random) -> dict[str, Any]:
    write = {"id": random.choice(IDS), "actor": "", "validate_only": False}
    if random.random() < 0.15:
        return {"kind": "CANCEL", **write}
    start = START + timedelta(hours=random.randrange(96) / 2)
    resource, *others = random.sample(RESOURCES, random.choice([1, 1, 2, 3]))
    return {
        "kind": "UPSERT",
        **write,
        "resource_id": resource,
        "additional_resource_ids": others or None,
        "start_time": str(start),
        "end_time": str(start + timedelta(hours=random.choice([0.5, 1, 8]))),
        "title": "",
        "attributes": {},
        "create_only": False,
        "hold_until": random.choice([None, None, str(datetime.now(UTC) + timedelta(hours=1))]),
        "max_hold": timedelta(days=1).total_seconds(),
    }


@pytest.mark.parametrize("seed", range(3))
async def test_a_shared_statement_shows_what_one_for_a_list_shows(
    create_database: CreateDatabase, seed: int
) -> None:
    random = Random(seed)
    url = create_database()
    with psycopg.connect(url) as connection:
        for organization in ORGANIZATIONS:
            for _ in range(WRITES):
                apply(connection, organization, random_write(random))
        # Holds that have expired by the clock, which nothing has recorded.
        connection.execute(
            """
            UPDATE appointments SET hold_until = now() - interval '1 minute'
            WHERE state = 'HELD' AND right(appointment_id, 1) IN ('1', '4', '7')
            """
        )
    wanted = []
    for _ in range(LISTS):
        start = START + timedelta(hours=random.randrange(-4, 104) / 2)
        end = start + timedelta(hours=random.choice([0.5, 3, 24, 100]))
        wanted.append(
            (
                random.choice([*ORGANIZATIONS, "never written"]),
                window(start, end, random.choice([None, None, *RESOURCES, "room 3"])),
                random.choice([1, 2, 5, 20, MOST_LISTED]),
            )
        )
    async with database_of(Counting, url, Metrics(), max_waiting=LISTS) as database:
        reads = ReadStore(database, None)
        shared = await asyncio.gather(
            *(listed(reads, name, window, limit=limit) for name, window, limit in wanted)
        )
        assert database.statements <= LISTS // MOST_LISTS + 1
        for (name, of_list, limit), page in zip(wanted, shared, strict=True):
            alone = await listed(reads, name, of_list, limit=limit, alone=True)
            assert shown(page) == shown(alone), (name, of_list, limit)
    assert sum(bool(page.items) for page in shared) > LISTS / 3
    assert any(len(page.items) > 5 for page in shared)


async def test_a_list_shows_what_was_written_while_others_were_read(
    database: Counting, org: Organization
) -> None:
    morning = window(MORNING, MORNING + timedelta(hours=1))
    reads = ReadStore(database, None)
    earlier = asyncio.create_task(listed(reads, org.id, morning, limit=20))
    await database.started.wait()
    await asyncio.to_thread(org.upsert, "a", 3, 4)

    page = await listed(reads, org.id, morning, limit=20)

    assert [each.appointment.id for each in page.items] == ["a"]
    assert page.revision == 1
    await earlier


STORED: LiteralString = """
    INSERT INTO appointments (
        organization_id, appointment_id, ordinal, resource_id, additional_resource_ids, start_time,
        end_time, title, attributes, created_at, updated_at, updated_at_given, state, version,
        revision
    )
    SELECT 'many', id, ordinal, resource_id, others, start_time,
        start_time + duration * interval '1 minute', '', attributes::json, now(), now(), false,
        state, 1, 1
    FROM ({stored}) AS stored (
        id, ordinal, resource_id, others, start_time, duration, state, attributes
    )
"""


def store(connection: psycopg.Connection, stored: LiteralString, **parameters: object) -> None:
    """Store rows, which are too many to write them one by one."""
    connection.execute(STORED.format(stored=stored), {"start": START, **parameters})
    connection.execute(
        "INSERT INTO organizations (organization_id, revision, recorded_at)"
        " VALUES ('many', 40000, now()) ON CONFLICT DO NOTHING"
    )


# Each has several rows, so the 500th row is one of several with the same start and id.
OF_SEVERAL_RESOURCES: LiteralString = """
    SELECT
        to_char(number, 'FM0000'), ordinal, 'room ' || ordinal,
        CASE ordinal WHEN 0 THEN others END, %(start)s + number * interval '1 hour', 60, 'ACTIVE',
        '{}'
    FROM generate_series(1, 90) AS number, generate_series(0, %(others)s) AS ordinal,
        LATERAL (
            SELECT array_agg('room ' || other) FROM generate_series(1, %(others)s) AS other
        ) AS its (others)
"""
RUNNING: LiteralString = """
    SELECT
        'running ' || number, 0, 'other ' || number, NULL::text[],
        %(start)s - number * interval '1 minute', 600, 'ACTIVE', '{}'
    FROM generate_series(1, %(running)s) AS number
"""


@pytest.mark.parametrize("others", [6, 9])
async def test_a_list_of_rows_of_several_resources_lacks_none(
    create_database: CreateDatabase, others: int
) -> None:
    url = create_database()
    with psycopg.connect(url) as connection:
        store(connection, OF_SEVERAL_RESOURCES, others=others)
    whole = window(START, START + timedelta(days=30))
    for running in range(5):
        with psycopg.connect(url) as connection:
            connection.execute("DELETE FROM appointments WHERE appointment_id ^@ 'running'")
            store(connection, RUNNING, running=running)
        for limit in (20, 55, 74, MOST_LISTED):
            async with database_of(Counting, url, Metrics(), max_waiting=10) as database:
                reads = ReadStore(database, None)
                page = await listed(reads, "many", whole, limit=limit)
                alone = await listed(reads, "many", whole, limit=limit, alone=True)
                assert len(page.items) == min(limit, 90 + running)
                assert shown(page) == shown(alone), (running, limit)


# PostgreSQL stores what cannot be compressed elsewhere, and the other in the row.
RANDOM: LiteralString = (
    "(SELECT string_agg(md5(text(n + number)), '') FROM generate_series(1, 400) n)"
)
REPEATED: LiteralString = "repeat('x', 12800)"
LARGE: LiteralString = """
    SELECT
        number, 0, 'room', NULL::text[], %(start)s + number * interval '1 hour', 60, %(state)s,
        json_build_object('large', {content})
    FROM generate_series(1, 30) AS number
"""


@pytest.mark.parametrize("resource_id", [None, "room"])
@pytest.mark.parametrize("content", [RANDOM, REPEATED], ids=["random", "repeated"])
async def test_a_list_with_much_content_is_read_alone(
    create_database: CreateDatabase, content: LiteralString, resource_id: str | None
) -> None:
    url = create_database()
    with psycopg.connect(url) as connection:
        store(connection, LARGE.format(content=content), state="ACTIVE")
    days = window(START, START + timedelta(days=3), resource_id)
    async with database_of(Counting, url, Metrics(), max_waiting=10) as database:
        reads = ReadStore(database, None)
        for limit, statements in ((10, 1), (MOST_LISTED, 2), (10, 2)):
            before = database.statements
            of_many, _ = await asyncio.gather(
                *(listed(reads, name, days, limit=limit) for name in ("many", "other"))
            )
            assert database.statements - before == statements
            assert len(of_many.items) == min(limit, 30)
            alone = await listed(reads, "many", days, limit=limit, alone=True)
            assert shown(of_many) == shown(alone)


def test_content_is_read_only_of_what_is_listed(create_database: CreateDatabase) -> None:
    with psycopg.connect(create_database()) as connection:
        store(connection, LARGE.format(content=RANDOM), state="CANCELLED")

        def blocks() -> int:
            """Return how many blocks of large attributes this session has read."""
            read = connection.execute(
                "SELECT pg_stat_get_xact_blocks_fetched(reltoastrelid) FROM pg_class"
                " WHERE oid = 'appointments'::regclass"
            ).fetchone()
            assert read is not None
            count: int = read[0]
            return count

        def listed_and_read() -> tuple[int, int]:
            """List everything; return how many appointments, and for how many blocks."""
            before = blocks()
            found = connection.execute(
                "SELECT (appointment).appointment_id"
                " FROM listed_appointments('{many}', '{NULL}', %s, %s, '{20}')",
                ([START], [START + timedelta(days=3)]),
            ).fetchall()
            return sum(id is not None for (id,) in found), blocks() - before

        assert listed_and_read() == (0, 0)
        connection.execute("UPDATE appointments SET state = 'ACTIVE' WHERE appointment_id = '20'")
        count, read = listed_and_read()
        assert count == 1
        assert 0 < read < 20


# What starts in a window without occupying it, and what runs when it starts, in many resources.
CANCELLED = """
    SELECT
        number, 0, '', NULL::text[], start_time, 1,
        CASE number WHEN 600 THEN 'ACTIVE' ELSE 'CANCELLED' END, '{}'
    FROM generate_series(1, 600) AS number,
        LATERAL (SELECT %(start)s + number * interval '1 minute') AS placed (start_time)
"""
RESOURCES_OF_MANY = """
    SELECT
        number, 0, 'room ' || mod(number, 1500), NULL::text[],
        %(start)s - interval '30 seconds' + number / 1500 * interval '1 day', 1, 'ACTIVE', '{}'
    FROM generate_series(0, 40000) AS number
"""


@pytest.mark.parametrize("stored", [CANCELLED, RESOURCES_OF_MANY])
async def test_a_list_that_takes_long_is_read_alone(
    create_database: CreateDatabase, stored: LiteralString
) -> None:
    url = create_database()
    with psycopg.connect(url) as connection:
        store(connection, stored)
    day = window(START, START + timedelta(days=1))
    of_resource = window(START, START + timedelta(days=1), "room 600")
    async with database_of(Counting, url, Metrics(), max_waiting=10) as database:
        reads = ReadStore(database, None)

        async def statements(wanted: Window) -> int:
            """List two organizations at a time; return how many statements that took."""
            before = database.statements
            of_many, of_other = await asyncio.gather(
                *(listed(reads, name, wanted, limit=1) for name in ("many", "other"))
            )
            alone = await listed(reads, "many", wanted, limit=1, alone=True)
            assert shown(of_many) == shown(alone)
            assert not of_other.items
            return database.statements - before - 1

        # The first time, the shared statement says so.
        assert [await statements(day) for _ in range(2)] == [2, 2]
        assert await statements(of_resource) == 1
