"""What programs do in a database that is distributed, and the migrations in one that is not."""

from pathlib import Path

import psycopg
import pytest

from local.programs import ROOT
from local.stack import DATABASE
from service.errors import DatabaseUnavailable
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.distribution import _prepare_roles
from service.postgres.schema import check_primary, connect
from service.postgres.session import (
    CALLER_ROLE,
    DISTRIBUTED_SETTINGS,
    WORKER_ROLE,
    DatabaseUnfit,
    Timeouts,
    session_settings,
)
from service.settings import Settings
from tests.commands import run_command
from tests.conftest import CreateDatabase, OwnPostgres, StartProgram
from tests.databases import apply_variants, database_of
from tests.observing import until
from tests.operations.place import queued_write
from tests.postgres.test_migrations import run_migrate

TIMEOUTS = Timeouts(connection=5, lock=5, statement=5)


@pytest.fixture
def url(create_database: CreateDatabase) -> str:
    """A database in the form for Citus."""
    url = create_database()
    apply_variants(url)
    return url


@pytest.mark.parametrize("role", [CALLER_ROLE, WORKER_ROLE])
async def test_a_connection_finds_out_by_itself(
    url: str, create_database: CreateDatabase, role: str
) -> None:
    for each, distributed in ((url, True), (create_database(), False)):
        primary = await check_primary(each, TIMEOUTS, role=role)
        assert primary.distributed is distributed
        async with database_of(
            Database, each, Metrics(), role=role, distributed=distributed
        ) as database:
            found = await database.fetch_across(
                "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)",
                (list(DISTRIBUTED_SETTINGS),),
            )
            assert (dict(found) == DISTRIBUTED_SETTINGS) is distributed


async def test_a_program_that_started_before_does_not_go_on(url: str) -> None:
    """Its statements would be in the form for one server."""
    async with database_of(Database, url, Metrics(), distributed=False) as database:
        with pytest.raises(DatabaseUnavailable):
            await database.fetch_across("SELECT 1")


async def test_a_statement_for_one_organization_is_sent_as_it_is(url: str) -> None:
    """A function call that is part of another statement runs on the coordinator."""
    async with database_of(Database, url, Metrics(), distributed=True) as database:
        assert await database.fetch("o", "SELECT current_query()") == [("SELECT current_query()",)]


async def test_a_pooler_is_refused(url: str) -> None:
    async with await connect(url, TIMEOUTS, replica=False, role=CALLER_ROLE) as session:
        session.mark = "that of another connection"
        with pytest.raises(DatabaseUnfit, match=r"a pooler .* distributed by organization"):
            await session.check()


@pytest.mark.parametrize(("distributed", "organizations"), [(True, 1), (False, 256)])
def test_organizations_share_no_call(distributed: bool, organizations: int) -> None:
    settings = Settings(database_url="postgresql://localhost/x")
    assert settings.for_database(distributed=distributed).max_call_organizations == organizations


def test_the_service_says_that_the_database_is_distributed(
    url: str, start_service: StartProgram
) -> None:
    service = start_service(DATABASE_URL=url)
    logged = service.wait_for_event(lambda event: "distributed by organization" in event["event"])
    assert logged["role"] == CALLER_ROLE


def test_organizations_with_long_queues_take_turns_with_others(
    url: str, start_worker: StartProgram
) -> None:
    """There are more of them than concurrent calls, each of which is for one organization."""
    insert = (
        "INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)"
        " SELECT %s, gen_random_uuid(), now(), write::json FROM unnest(%s::text[]) AS write"
    )
    queued = "SELECT DISTINCT organization_id FROM queued_operations"
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(4):
            writes = [queued_write("a", minute % 1440) for minute in range(6000)]
            connection.execute(insert, (f"large{number}", writes))
        connection.execute(insert, ("small", [queued_write("a", 0)]))
        start_worker(DATABASE_URL=url)
        until(lambda: ("small",) not in connection.execute(queued).fetchall())
        assert len(connection.execute(queued).fetchall()) == 4


def test_verify_is_refused(url: str) -> None:
    done = run_command(url, "verify")
    assert done.returncode == 2
    assert "one snapshot does not see all nodes" in done.stderr


def test_an_organization_is_purged_in_one_transaction(url: str) -> None:
    write = (
        '[{"kind": "UPSERT", "id": "a", "resource_id": "", "title": "", "attributes": {},'
        ' "actor": "", "start_time": "2030-01-01T10:00Z", "end_time": "2030-01-01T11:00Z"}]'
    )
    with psycopg.connect(url, autocommit=True) as connection:
        for organization in ("gone", "kept"):
            connection.execute("SELECT * FROM apply_writes(%s, %s)", (organization, write))
        connection.execute("INSERT INTO event_publishers VALUES ('x', 4, 'infinity')")
        done = run_command(url, "purge", "gone", "--yes-delete", "gone")
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 rows of appointment_history removed" in done.stdout
        left = connection.execute("SELECT organization_id FROM appointments").fetchall()
        assert left == [("kept",)]
        noted = connection.execute("SELECT organization_id FROM purged_organizations").fetchall()
        assert noted == [("gone",)]
        # Whoever was publishing begins again.
        assert connection.execute("SELECT fence FROM event_publishers").fetchall() == [(5,)]


def test_the_migrations_leave_a_database_without_the_extension_alone(
    create_database: CreateDatabase,
) -> None:
    url = create_database()
    assert run_migrate(url).returncode == 0
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT to_regproc('purge_organization')").fetchone()
        assert row == (None,)


async def test_the_roles_have_the_settings_of_the_service(own_postgres: OwnPostgres) -> None:
    """Those of a node's connection, which gets no options."""
    server = own_postgres()
    url = server.url(DATABASE)
    async with await connect(url, TIMEOUTS, replica=False, role=None) as owner:
        await _prepare_roles(owner)
    for role in (CALLER_ROLE, WORKER_ROLE):
        with psycopg.connect(url, user=role) as connection:
            for name, value in (*DISTRIBUTED_SETTINGS.items(), ("enable_seqscan", "off")):
                assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)
            found = connection.execute(
                "SELECT name FROM pg_settings WHERE source = 'database user'"
            ).fetchall()
        wanted = session_settings(TIMEOUTS, role=None).keys()
        assert {name for (name,) in found} == wanted


def test_the_variants_are_where_the_image_has_them() -> None:
    assert (Path("migrations") / "citus.sql").exists()
    assert "COPY migrations migrations" in (ROOT / "Dockerfile").read_text()
