"""The cost of a write or list depends neither on the number of rows nor on statistics."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from service.errors import AppointmentNotFound
from service.metrics import Metrics
from service.postgres.database import Database
from service.reads import by_revision
from service.reads.store import PageByRevision, ReadStore
from service.reads.window import Window
from tests.conftest import CreateDatabase
from tests.databases import database_of

STORED = 3000
ORGANIZATIONS = 300
WRITES = 50
# Its organization, its neighbour, and what the indexes look at when it is stored.
ROWS_A_WRITE = 6
# What indexes and tables of some thousand rows take; some of the largest organization more.
BLOCKS_A_WRITE = 36
BLOCKS_A_GET = 8
# Of a binary search through the revisions.
BLOCKS_A_STEP = 5
LISTED = 20
# Each listed one, its organization, and what the part that looks back finds.
ROWS_A_LIST = LISTED + 4
# Its place and its state, each from index and table.
ROWS_A_PAST_LIST = 2 * LISTED + 6
# What four levels of an index and the table take for each, and what a window looks back.
BLOCKS_A_PAST_LIST = 6 * LISTED + 40
# Each row of the resource and its appointment, through four levels of an index and the table.
BLOCKS_A_SHARED_LIST = 8 * LISTED + 40
# Appointments that were moved as often.
MOVED = 50
START = datetime(2030, 1, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
                    await database.fetch_across("SELECT pg_stat_force_next_flush()")
                    before = _rows_read(connection)
                    page = await reads.list(
                        "large",
                        window,
                        after=None,
                        limit=100,
                        as_of=None,
                        at=None,
                        min_revision=None,
                    )
                    await database.fetch_across("SELECT pg_stat_force_next_flush()")
                    assert len(page.items) == LISTED
                    # A statement for several lists finds what to list, and reads that by id.
                    again = 0 if include_cancelled else LISTED
                    assert _rows_read(connection) - before <= ROWS_A_LIST + again


@pytest.mark.parametrize("others", [0, ORGANIZATIONS])
async def test_a_list_of_a_shared_resource_reads_what_it_shows(
    create_database: CreateDatabase, others: int
) -> None:
    url = create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        _keep_autovacuum_away(connection)
        _write(connection, "large", range(STORED), additional=["shared"])
        for number in range(others):
            _write(connection, str(number), range(1))
        connection.execute("ANALYZE")
        async with database_of(Database, url, Metrics()) as database:
            reads = ReadStore(database, None)
            window = Window(
                resource_id="shared",
                start=START + timedelta(minutes=STORED // 2),
                end=None,
                include_cancelled=False,
            )
            before = _blocks_read(connection)
            page = await reads.list(
                "large",
                window,
                after=None,
                limit=LISTED,
                as_of=None,
                at=None,
                min_revision=None,
            )
            await database.fetch_across("SELECT pg_stat_force_next_flush()")
            assert len(page.items) == LISTED
            assert _blocks_read(connection) - before <= BLOCKS_A_SHARED_LIST


@pytest.mark.parametrize("others", [0, ORGANIZATIONS])
async def test_what_occupies_a_window_is_read_without_the_rest(
    create_database: CreateDatabase, others: int
) -> None:
    url = create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        _write(connection, "large", range(STORED))
        for number in range(others):
            _write(connection, str(number), range(1))
        connection.execute("ANALYZE")
        async with database_of(Database, url, Metrics()) as database:
            reads = ReadStore(database, None)
            for first in (0, STORED // 2, STORED):
                # Not all of the first appointment, which begins before.
                start = START + timedelta(minutes=first, seconds=30)
                start_us = (start - EPOCH) // timedelta(microseconds=1)
                end_us = start_us + LISTED * 60_000_000
                for _ in range(7):
                    await database.fetch_across("SELECT pg_stat_force_next_flush()")
                    before = _rows_read(connection)
                    page = await reads.occupied(
                        "large",
                        ["unused", ""],
                        start=start_us,
                        end=end_us,
                        as_of=None,
                        min_revision=None,
                    )
                    await database.fetch_across("SELECT pg_stat_force_next_flush()")
                    unused, found = (each.ranges for each in page.items)
                    assert not unused.starts
                    stored = [start_us - 30_000_000], [end_us + 30_000_000]
                    assert found == (stored if first < STORED else ([], []))
                    # Its organization, and what is looked at before the window of each resource.
                    assert _rows_read(connection) - before <= LISTED + 4


@pytest.mark.parametrize("resource_id", [None, ""])
@pytest.mark.parametrize(
    ("analyzed", "others"), [("before", 0), ("between", 0), ("after", ORGANIZATIONS)]
)
async def test_a_list_of_the_past_reads_what_it_shows(
    create_database: CreateDatabase, resource_id: str | None, analyzed: str, others: int
) -> None:
    """With statistics of empty tables, of the creations, or of all changes; by old plans too."""
    url = create_database()
    database = database_of(Database, url, Metrics())
    with psycopg.connect(url, autocommit=True) as connection:
        _keep_autovacuum_away(connection)
        async with database:
            reads = ReadStore(database, None)

            async def list_past(window: Window, as_of: int, limit: int) -> int:
                page = await reads.list(
                    "large",
                    window,
                    after=None,
                    limit=limit,
                    as_of=as_of,
                    at=None,
                    min_revision=None,
                )
                return len(page.items)

            middle = START + timedelta(minutes=STORED // 2)
            windows = [
                Window(resource_id=resource_id, start=start, end=end, include_cancelled=False)
                for start, end in (
                    (None, None),
                    (middle, None),
                    (middle, middle + timedelta(minutes=LISTED)),
                )
            ]
            if analyzed == "before":
                _write(connection, "large", range(1))
                connection.execute("ANALYZE")
                for window in windows:
                    for _ in range(7):
                        await list_past(window, 1, LISTED)
            _write(connection, "large", range(analyzed == "before", STORED))
            for number in range(others):
                _write(connection, str(number), range(1))
            if analyzed == "between":
                connection.execute("ANALYZE")
            _write(connection, "large", range(STORED), title="changed", outcome="UPDATED")
            if analyzed == "after":
                connection.execute("ANALYZE")
            for window in windows:
                for as_of in (STORED, STORED * 3 // 2, STORED * 2):
                    await database.fetch_across("SELECT pg_stat_force_next_flush()")
                    rows, blocks = _rows_read(connection), _blocks_read(connection)
                    assert await list_past(window, as_of, LISTED) == LISTED
                    await database.fetch_across("SELECT pg_stat_force_next_flush()")
                    assert _rows_read(connection) - rows <= ROWS_A_PAST_LIST
                    assert _blocks_read(connection) - blocks <= BLOCKS_A_PAST_LIST


@pytest.mark.parametrize("resource_id", [None, ""])
@pytest.mark.parametrize(
    ("analyzed", "others"), [("before", 0), ("between", 0), ("after", ORGANIZATIONS)]
)
async def test_a_list_by_revision_reads_what_it_looks_at(
    create_database: CreateDatabase,
    monkeypatch: pytest.MonkeyPatch,
    resource_id: str | None,
    analyzed: str,
    others: int,
) -> None:
    """With statistics of empty tables, of the creations, or of all changes; by old plans too."""
    monkeypatch.setattr(by_revision, "LOOKED_AT", LISTED * 5)
    url = create_database()
    database = database_of(Database, url, Metrics())
    with psycopg.connect(url, autocommit=True) as connection:
        _keep_autovacuum_away(connection)
        async with database:
            reads = ReadStore(database, None)
            window = Window(resource_id=resource_id, start=START, end=None, include_cancelled=False)

            async def listed(as_of: int | None, after: int) -> PageByRevision:
                return await reads.list_by_revision(
                    "large",
                    window,
                    after=after,
                    limit=LISTED,
                    as_of=as_of,
                    at=None,
                    min_revision=None,
                )

            if analyzed == "before":
                _write(connection, "large", range(1))
                connection.execute("ANALYZE")
                for as_of in (None, 1):
                    for _ in range(7):
                        await listed(as_of, 0)
            _write(connection, "large", range(analyzed == "before", STORED))
            for number in range(others):
                _write(connection, str(number), range(1))
            if analyzed == "between":
                connection.execute("ANALYZE")
            _write(connection, "large", range(STORED), title="changed", outcome="UPDATED")
            if analyzed == "after":
                connection.execute("ANALYZE")
            for as_of, after, shown in (
                (None, STORED * 3 // 2, LISTED),
                (STORED * 2, STORED * 3 // 2, LISTED),
                (STORED, STORED // 2, LISTED),
                # None of these changes is the latest of its appointment.
                (None, STORED // 2, 0),
                (STORED * 2, STORED // 2, 0),
            ):
                await database.fetch_across("SELECT pg_stat_force_next_flush()")
                rows, blocks = _rows_read(connection), _blocks_read(connection)
                page = await listed(as_of, after)
                await database.fetch_across("SELECT pg_stat_force_next_flush()")
                assert len(page.items) == shown
                looked_at = shown or by_revision.LOOKED_AT
                # Each change and its appointment; then as many appointments are counted.
                assert _rows_read(connection) - rows <= (2 if shown else 3) * looked_at + 6
                assert _blocks_read(connection) - blocks <= 8 * looked_at + 40


async def test_what_moved_often_costs_a_list_of_the_past_no_look_at_each_move(
    create_database: CreateDatabase,
) -> None:
    url = create_database()
    database = database_of(Database, url, Metrics())
    window = Window(resource_id=None, start=None, end=None, include_cancelled=False)
    with psycopg.connect(url, autocommit=True) as connection:
        _keep_autovacuum_away(connection)
        _write(connection, "moved", range(MOVED))
        for time in range(1, MOVED):
            _write(connection, "moved", range(MOVED), offset=time * MOVED, outcome="UPDATED")
        connection.execute("ANALYZE")
        async with database:
            reads = ReadStore(database, None)
            before = _rows_read(connection)
            page = await reads.list(
                "moved", window, after=None, limit=2, as_of=MOVED**2, at=None, min_revision=None
            )
            await database.fetch_across("SELECT pg_stat_force_next_flush()")
            assert [each.appointment.id for each in page.items] == ["0", "1"]
            # The places that are tried, and each appointment.
            assert _rows_read(connection) - before <= 4 * (10 * 2 + MOVED)


async def test_a_get_reads_a_few_blocks_of_a_large_organization_among_others(
    create_database: CreateDatabase,
) -> None:
    url = create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        _keep_autovacuum_away(connection)
        _write(connection, "large", range(STORED))
        for number in range(ORGANIZATIONS):
            _write(connection, str(number), range(1))
        connection.execute("ANALYZE")
        async with database_of(Database, url, Metrics()) as database:
            reads = ReadStore(database, None)
            # The first read of a connection also reads the metapages of indexes.
            await reads.get("large", "0", as_of=None, at=None, min_revision=None)
            await database.fetch_across("SELECT pg_stat_force_next_flush()")
            before = _blocks_read(connection)
            await reads.get("large", "7", as_of=None, at=None, min_revision=None)
            await database.fetch_across("SELECT pg_stat_force_next_flush()")
            assert _blocks_read(connection) - before <= BLOCKS_A_GET


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
                    await reads.get("large", "0", as_of=None, at=None, min_revision=None)
            _write(connection, "small", range(2))
            for _ in range(7):
                assert await reads.revision_at("small", datetime.now(UTC)) == 2
            _write(connection, "large", range(STORED))
            await database.fetch_across("SELECT pg_stat_force_next_flush()")
            before = _blocks_read(connection)
            await reads.get("large", "0", as_of=None, at=None, min_revision=None)
            await database.fetch_across("SELECT pg_stat_force_next_flush()")
            assert _blocks_read(connection) - before <= BLOCKS_A_GET
            before = _blocks_read(connection)
            assert await reads.revision_at("large", datetime.now(UTC)) == STORED
            await database.fetch_across("SELECT pg_stat_force_next_flush()")
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


def _write(
    connection: psycopg.Connection,
    organization: str,
    minutes: range,
    *,
    offset: int = 0,
    title: str = "",
    additional: Sequence[str] = (),
    outcome: str = "CREATED",
) -> None:
    """One call that books each of the minutes, counted from the start and moved by an offset."""
    writes: list[dict[str, object]] = [
        {
            "kind": "UPSERT",
            "id": str(minute),
            "resource_id": "",
            "additional_resource_ids": list(additional) or None,
            "start_time": str(START + timedelta(minutes=minute + offset)),
            "end_time": str(START + timedelta(minutes=minute + offset + 1)),
            "title": title,
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
    assert outcomes == [(outcome,)] * len(minutes)


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
