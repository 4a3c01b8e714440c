"""Deleted rows remain while a transaction has an older snapshot; polls do not scan them."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread
from typing import LiteralString

import psycopg
import pytest

from service.metrics import Metrics
from service.operations.postgres.worker import _COUNT
from service.postgres.database import Database
from service.postgres.purge import BATCH, Purge
from service.postgres.rows import Row
from service.postgres.session import WORKER_ROLE
from tests.conftest import CreateDatabase
from tests.databases import database_of
from tests.observing import until
from tests.operations.place import queued_write

pytestmark = pytest.mark.slow

ORGANIZATIONS = 20
# Operations per organization, the minutes of a day; they become as many dead rows.
EACH = 1440
DEAD = ORGANIZATIONS * EACH
TOGETHER = 480
# Maximum number of blocks of tables and indexes that are read. Scanning the dead rows would
# read thousands.
BLOCKS_A_LOOK = 120
BLOCKS_A_CALL = 400

INSERT = """
    INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)
    VALUES (%s, gen_random_uuid(), now(), %s::json)
"""


@pytest.fixture
def url(create_database: CreateDatabase) -> str:
    return create_database()


def test_a_look_for_work_does_not_pass_what_was_applied(url: str) -> None:
    with _connect(url) as connection, _snapshot(url):
        for number in range(ORGANIZATIONS):
            _queue(connection, f"o{number:02}", range(EACH))
        _apply_all(connection)
        assert _count(connection, "operations WHERE revision IS NOT NULL") == DEAD
        assert _count_dead(connection) == DEAD

        looked, blocks = _look(connection)
        assert looked == []
        assert blocks <= BLOCKS_A_LOOK
        counted, count_blocks = _blocks(connection, _COUNT)
        assert counted == [(0,)]
        assert count_blocks <= BLOCKS_A_LOOK

        _queue(connection, "o07", [0, 1])
        looked, work_blocks = _look(connection)
        assert looked == [("o07",)]
        assert work_blocks <= BLOCKS_A_LOOK
        applied, call_blocks = _apply(connection, "o07")
        assert applied == [("DONE", 2)]
        assert call_blocks <= BLOCKS_A_CALL
    # Printed with -s.
    sys.stdout.write(
        f"\n{DEAD} dead rows under a held snapshot: a look for work reads {blocks} blocks,"
        f" one that finds some {work_blocks}, applying it {call_blocks}, counting {count_blocks}\n"
    )


def test_an_operation_that_was_accepted_long_before_it_was_stored_keeps_its_place(
    url: str,
) -> None:
    """Its transaction is open while thousands of later operations are applied."""
    with _connect(url) as connection, psycopg.connect(url) as late:
        late.execute(INSERT, ("o", queued_write("late", 0, title="first")))
        _apply_thousands(connection)
        late.commit()
        connection.execute(INSERT, ("o", queued_write("late", 0, title="second")))
        _apply_all(connection)
        _check_late(connection)


def test_an_operation_whose_transaction_has_no_number_yet_keeps_its_place(url: str) -> None:
    """It has its value of the sequence, and waits for a lock before anything is written."""
    statement = INSERT.replace(
        "gen_random_uuid()",
        "CASE WHEN pg_advisory_xact_lock_shared(1) IS NOT NULL THEN gen_random_uuid() END",
    )
    with _connect(url) as connection, _connect(url) as late, _connect(url) as holder:
        # Only the first of several values of a sequence assigns a transaction id.
        _queue(connection, "others", [0])
        holder.execute("SELECT pg_advisory_lock(1)")
        parameters = ("o", queued_write("late", 0, title="first"))
        thread = Thread(target=late.execute, args=(statement, parameters))
        thread.start()
        try:
            until(lambda: _count(connection, "pg_locks WHERE NOT granted") == 1)
            _apply_thousands(connection)
        finally:
            holder.execute("SELECT pg_advisory_unlock(1)")
            thread.join()
        connection.execute(INSERT, ("o", queued_write("late", 0, title="second")))
        _apply_all(connection)
        _check_late(connection)


def test_an_operation_that_waits_stays_the_first_while_others_are_applied(url: str) -> None:
    with _connect(url) as connection:
        _queue(connection, "slow", range(2))
        assert _look(connection)[0] == [("slow",)]
        _apply_thousands(connection)
        assert _count(connection, "queued_operations WHERE organization_id = 'slow'") == 2
        connection.execute("UPDATE operation_leases SET leased_until = '-infinity'")
        assert _look(connection)[0] == [("slow",)]
        assert _apply(connection, "slow")[0] == [("DONE", 2)]
        assert _count(connection, "queued_operations") == 0


@pytest.mark.parametrize(
    "moved",
    [
        # The state after a copy without the values of sequences.
        "ALTER TABLE queued_operations ALTER COLUMN sequence RESTART",
        # The state after a dump was restored on a server with fewer transactions so far.
        "UPDATE operation_queue_start SET settling_transaction = '999999999999'",
    ],
)
def test_a_copied_database_goes_on(url: str, moved: str) -> None:
    with _connect(url) as connection:
        _apply_thousands(connection)
        connection.execute(moved.encode())
        before = _start(connection)
        _queue(connection, "after", range(2))
        _apply_all(connection)
        assert _count(connection, "queued_operations") == 0
        if "RESTART" not in moved:
            _apply_thousands(connection, "later")
            assert _start(connection) > before


async def test_a_purge_does_not_pass_what_it_has_deleted(url: str) -> None:
    rows = 20_000
    kept = timedelta(days=1)
    database = database_of(Database, url, Metrics(), role=WORKER_ROLE)
    with _connect(url) as connection, _snapshot(url):
        connection.execute(
            "INSERT INTO operations (organization_id, operation_id, accepted_at, finished_at,"
            " appointment_id, outcome, organization_revision)"
            " SELECT 'o', gen_random_uuid(), t, t, 'a', 'CREATED', 1"
            " FROM generate_series(1, %s) AS n,"
            " LATERAL (SELECT now() - interval '9 days' + n * interval '1 second') AS at (t)",
            (rows,),
        )
        async with database:
            purge = Purge(database, table="operations", time="finished_at", keep=kept)
            for _ in range(rows // BATCH):
                assert await purge.purge() == BATCH
            await database.fetch_across("SELECT pg_stat_force_next_flush()")
            before = _blocks_read(connection)
            assert await purge.purge() == 0
            await database.fetch_across("SELECT pg_stat_force_next_flush()")
            assert _blocks_read(connection) - before <= BLOCKS_A_LOOK
        assert _count(connection, "operations") == 0


def _connect(url: str) -> psycopg.Connection:
    """A connection like the service's, whose plans do not depend on statistics."""
    options = "-c enable_seqscan=off -c plan_cache_mode=force_generic_plan"
    return psycopg.connect(url, autocommit=True, options=options)


@contextmanager
def _snapshot(url: str) -> Iterator[None]:
    """Hold a snapshot from now on, as a backup does."""
    with psycopg.connect(url) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT count(*) FROM queued_operations")
        yield


def _queue(connection: psycopg.Connection, organization: str, minutes: range | list[int]) -> None:
    connection.execute(
        "INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)"
        " SELECT %s, gen_random_uuid(), now(), write::json FROM unnest(%s::text[]) AS write",
        (organization, [queued_write(str(minute), minute) for minute in minutes]),
    )


def _apply_all(connection: psycopg.Connection) -> None:
    """Lease an organization and apply operations, as a worker does, until none is queued."""
    while found := _look(connection)[0]:
        for (organization,) in found:
            while _apply(connection, organization)[0][0][0] == "MORE":
                pass


def _apply_thousands(connection: psycopg.Connection, organization: str = "others") -> None:
    for _ in range(3):
        _queue(connection, organization, range(EACH))
        _apply_all(connection)


def _look(connection: psycopg.Connection) -> tuple[list[Row], int]:
    return _blocks(
        connection, "SELECT organization_id FROM lease_operations('', 1, interval '1 hour')"
    )


def _apply(connection: psycopg.Connection, organization: str) -> tuple[list[Row], int]:
    fences = connection.execute(
        "SELECT fence FROM operation_leases WHERE organization_id = %s", (organization,)
    ).fetchall()
    leases = [{"organization_id": organization, "fence": fences[0][0], "only_one": False}]
    return _blocks(
        connection,
        "SELECT status, applied FROM apply_queued_operations(%s::json, %s, interval '1 hour')",
        (json.dumps(leases), TOGETHER),
    )


def _check_late(connection: psycopg.Connection) -> None:
    """Assert that both were applied in the order of acceptance, and none is queued."""
    titles = connection.execute(
        "SELECT title FROM appointment_history WHERE organization_id = 'o' ORDER BY revision"
    ).fetchall()
    assert titles == [("first",), ("second",)]
    assert _count(connection, "queued_operations") == 0


def _start(connection: psycopg.Connection) -> int:
    ((start,),) = connection.execute("SELECT first_sequence FROM operation_queue_start").fetchall()
    return int(start)


def _count(connection: psycopg.Connection, what: str) -> int:
    ((number,),) = connection.execute(f"SELECT count(*) FROM {what}".encode()).fetchall()
    return int(number)


def _count_dead(connection: psycopg.Connection) -> int:
    """Return the number of deleted rows of the queue that cannot be vacuumed yet."""
    connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    notices: list[str] = []
    connection.execute("VACUUM (VERBOSE, TRUNCATE off) queued_operations")
    found = re.search(r"(\d+) are dead but not yet removable", " ".join(notices))
    assert found is not None
    return int(found[1])


def _blocks(
    connection: psycopg.Connection, query: LiteralString, parameters: Sequence[object] = ()
) -> tuple[list[Row], int]:
    """Return the result of a query and the number of blocks that it read."""
    before = _blocks_read(connection)
    found = connection.execute(query, parameters).fetchall()
    return found, _blocks_read(connection) - before


def _blocks_read(connection: psycopg.Connection) -> int:
    connection.execute("SELECT pg_stat_force_next_flush()")
    ((blocks,),) = connection.execute(
        "SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)"
        " FROM pg_statio_user_tables"
    ).fetchall()
    return int(blocks)
