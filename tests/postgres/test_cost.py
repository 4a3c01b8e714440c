"""The cost of a write or list depends neither on the number of rows nor on statistics."""

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from service.errors import AppointmentNotFound
from service.metrics import Metrics
from service.postgres.database import Database
from service.reads.store import ReadStore, Window
from tests.conftest import CreateDatabase
from tests.databases import database_of

STORED = 3000
ORGANIZATIONS = 300
WRITES = 50
# Its organization, its neighbour, and what the indexes look at when it is stored.
ROWS_A_WRITE = 6
# What indexes and tables of some thousand rows take; some of the largest organization more.
BLOCKS_A_WRITE = 32
BLOCKS_A_GET = 8
# Of a binary search through the revisions.
BLOCKS_A_STEP = 5
LISTED = 20
# Each listed one, its organization, and what the part that looks back finds.
ROWS_A_LIST = LISTED + 4
START = datetime(2030, 1, 1, tzinfo=UTC)


def test_a_write_reads_a_few_rows_whatever_the_statistics_say(
    create_database: CreateDatabase,
) -> None:
    """Statistics and plans from when the tables held one row, then new ones."""
    with psycopg.connect(create_database(), autocommit=True) as connection:
        _keep_autovacuum_away(connection)
        _write(connection, "first", range(1))
        connection.execute("ANALYZE")
        for minute in range(1, 21):
            _write(connection, "first", range(minute, minute + 1))
        _write(connection, "large", range(STORED))
        for number in range(ORGANIZATIONS):
            _write(connection, str(number), range(1))
        _check_cost(connection, "large")
        _check_cost(connection, "first")
        connection.execute("ANALYZE")
        _check_cost(connection, "large")
        _check_cost(connection, "new")
        # Without a key none is looked for.
        connection.execute("SELECT pg_stat_force_next_flush()")
        scans = connection.execute(
            "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'unchanged_writes'"
        ).fetchone()
        assert scans == (0, 0)


@pytest.mark.parametrize("resource_id", [None, ""])
@pytest.mark.parametrize("include_cancelled", [False, True])
@pytest.mark.parametrize("others", [0, ORGANIZATIONS])
async def test_a_list_of_a_window_reads_what_it_shows(
    create_database: CreateDatabase, resource_id: str | None, include_cancelled: bool, others: int
) -> None:
    url = create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        _write(connection, "large", range(STORED))
        for number in range(others):
            _write(connection, str(number), range(1))
        connection.execute("ANALYZE")
        database = database_of(Database, url, Metrics())
        async with database:
            reads = ReadStore(database, None)
            for start in (START, START + timedelta(minutes=STORED // 2)):
                window = Window(
                    resource_id=resource_id,
                    start=start,
                    end=start + timedelta(minutes=LISTED),
                    include_cancelled=include_cancelled,
                )
                # As often as it takes for a statement to be prepared, and once more.
                for _ in range(7):
                    await database.fetch("SELECT pg_stat_force_next_flush()")
                    before = _rows_read(connection)
                    page = await reads.list(
                        "large",
                        window,
                        after=None,
                        limit=100,
                        as_of=None,
                        min_revision=None,
                    )
                    await database.fetch("SELECT pg_stat_force_next_flush()")
                    assert len(page.items) == LISTED
                    assert _rows_read(connection) - before <= ROWS_A_LIST


async def test_a_get_and_a_look_into_the_past_look_at_a_few_blocks(
    create_database: CreateDatabase,
) -> None:
    """By plans from when the tables were empty."""
    url = create_database()
    database = database_of(Database, url, Metrics())
    with psycopg.connect(url, autocommit=True) as connection:
        async with database:
            reads = ReadStore(database, None)
            for _ in range(7):
                with pytest.raises(AppointmentNotFound):
                    await reads.get("large", "0", as_of=None, min_revision=None)
            _write(connection, "small", range(2))
            for _ in range(7):
                assert await reads.revision_at("small", datetime.now(UTC)) == 2
            _write(connection, "large", range(STORED))
            await database.fetch("SELECT pg_stat_force_next_flush()")
            before = _blocks_read(connection)
            await reads.get("large", "0", as_of=None, min_revision=None)
            await database.fetch("SELECT pg_stat_force_next_flush()")
            assert _blocks_read(connection) - before <= BLOCKS_A_GET
            before = _blocks_read(connection)
            assert await reads.revision_at("large", datetime.now(UTC)) == STORED
            await database.fetch("SELECT pg_stat_force_next_flush()")
            assert _blocks_read(connection) - before <= BLOCKS_A_STEP * STORED.bit_length()


def test_no_write_is_planned_anew(create_database: CreateDatabase) -> None:
    """Planning costs several times what running does."""
    with psycopg.connect(create_database(), autocommit=True) as connection:
        found = connection.execute(
            "SELECT proname FROM pg_proc"
            " WHERE 'plan_cache_mode=force_generic_plan' = ANY(proconfig)"
        ).fetchall()
    assert {name for (name,) in found} >= {"apply_writes", "apply_batches"}


def _keep_autovacuum_away(connection: psycopg.Connection) -> None:
    """It would renew the statistics, and while it runs dead row versions stay."""
    for (table,) in connection.execute(
        "SELECT oid::regclass::text FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    ).fetchall():
        connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")


def _write(connection: psycopg.Connection, organization: str, minutes: range) -> None:
    """One call that books each of the minutes, counted from the start."""
    writes = [
        {
            "kind": "UPSERT",
            "id": str(minute),
            "resource_id": "",
            "start_time": str(START + timedelta(minutes=minute)),
            "end_time": str(START + timedelta(minutes=minute + 1)),
            "title": "",
            "attributes": {},
            "create_only": False,
            "actor": "",
            "validate_only": False,
        }
        for minute in minutes
    ]
    outcomes = connection.execute(
        "SELECT outcome FROM apply_writes(%s, %s::json)", (organization, json.dumps(writes))
    ).fetchall()
    assert outcomes == [("CREATED",)] * len(minutes)


def _check_cost(connection: psycopg.Connection, organization: str) -> None:
    """Book free minutes one by one; return the number of rows that were read."""
    row = connection.execute(
        "SELECT count(*) FROM appointments WHERE organization_id = %s", (organization,)
    ).fetchone()
    assert row is not None
    first = row[0] + STORED
    before, blocks_before = _rows_read(connection), _blocks_read(connection)
    for minute in range(first, first + WRITES):
        _write(connection, organization, range(minute, minute + 1))
    assert _rows_read(connection) - before <= ROWS_A_WRITE * WRITES
    assert _blocks_read(connection) - blocks_before <= BLOCKS_A_WRITE * WRITES


def _blocks_read(connection: psycopg.Connection) -> int:
    """Return the number of blocks of all tables and indexes that were read so far.

    An index that is read along for entries that do not match counts here only.
    """
    connection.execute("SELECT pg_stat_force_next_flush()")
    row = connection.execute(
        "SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)"
        " FROM pg_statio_user_tables"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _rows_read(connection: psycopg.Connection) -> int:
    """Return the number of rows of all tables that were read so far."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    row = connection.execute(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables"
    ).fetchone()
    assert row is not None
    return int(row[0])
