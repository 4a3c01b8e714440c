"""The migrations can be applied from any directory at any time, and reverted."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from local.postgres import EmbeddedPostgres
from local.programs import ROOT
from local.schema import migration
from local.stack import DATABASE, base_environment
from service.postgres.schema import NEEDED_MIGRATIONS, SchemaOutdated, check_primary
from service.postgres.session import CALLER_ROLE, WORKER_ROLE, Timeouts
from tests.conftest import CreateDatabase, OwnPostgres

TIMEOUTS = Timeouts(connection=5, lock=5, statement=5)
MIGRATIONS = sorted((ROOT / "migrations").glob("[0-9]*.sql"))


def run_migrate(
    url: str | None,
    *arguments: str,
    directory: Path = ROOT / "migrations",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the command of `make migrate`."""
    return subprocess.run(
        [directory / "migrate", *arguments],
        env=base_environment() | ({"DATABASE_URL": url} if url else {}) | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def with_migration(place: Path, text: str) -> Path:
    """Copy the migrations to a directory, with an additional one."""
    (place / ".venv").symlink_to(ROOT / ".venv")
    directory = shutil.copytree(ROOT / "migrations", place / "migrations")
    (directory / "29990101000000_another.sql").write_text(text)
    return directory


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def schema(url: str) -> list[tuple[Any, ...]]:
    """Return the schema: tables with columns, indexes, constraints, functions."""
    return rows(
        url,
        """
        SELECT 'column', table_name || '.' || column_name, data_type
        FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL
        SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL
        SELECT 'constraint', conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT 'function', oid::regprocedure::text,
            concat_ws(' ', md5(prosrc), prosecdef, proconfig::text, proacl::text)
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL
        SELECT 'privilege', table_name || '.' || column_name,
            string_agg(privilege_type, ',' ORDER BY privilege_type)
        FROM information_schema.column_privileges
        WHERE table_schema = 'public' AND grantee = 'appointments_service'
        GROUP BY table_name, column_name
        UNION ALL
        SELECT 'privilege', table_name, string_agg(privilege_type, ',' ORDER BY privilege_type)
        FROM information_schema.table_privileges
        WHERE table_schema = 'public' AND grantee = 'appointments_service'
        GROUP BY table_name
        ORDER BY 1, 2, 3
        """,
    )


def can_write(url: str) -> bool:
    """Return whether apply_writes matches the tables, or both do not exist."""
    if rows(url, "SELECT to_regproc('apply_writes')") == [(None,)]:
        return True
    write = {
        "kind": "UPSERT",
        "id": "a",
        "resource_id": "",
        "start_time": "2030-01-07T08:00:00Z",
        "end_time": "2030-01-07T09:00:00Z",
        "title": "",
        "attributes": {},
        "create_only": False,
        "idempotency_key": "k",
        "idempotency_digest": "00",
        "actor": "",
        "validate_only": False,
    }
    # Not committed, so that the next migration down meets none of these rows.
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT outcome FROM apply_writes('o', %s::json)", (json.dumps([write, write]),)
        ).fetchall()
        connection.rollback()
    return found == [("CREATED",)] * 2


@pytest.fixture
def server(own_postgres: OwnPostgres) -> EmbeddedPostgres:
    """A new server, on which the role does not exist either."""
    return own_postgres(migrated=False)


@pytest.mark.parametrize("attempt", range(3))
def test_two_at_once_apply_each_migration_once(server: EmbeddedPostgres, attempt: int) -> None:
    url = server.url("appointments")
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(run_migrate, [url, url]))
    assert [(each.returncode, each.stderr) for each in done] == [(0, ""), (0, "")]
    applied = [
        path.name for path in MIGRATIONS for each in done if f"Applied: {path.name}" in each.stdout
    ]
    assert applied == [path.name for path in MIGRATIONS]


def test_two_databases_of_one_server_at_once(server: EmbeddedPostgres) -> None:
    urls = [server.create_database(f"database_{number}") for number in range(4)]
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(run_migrate, urls))
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * 4
    assert schema(urls[0]) == schema(urls[3])


def test_again_changes_nothing(server: EmbeddedPostgres) -> None:
    url = server.url("appointments")
    assert run_migrate(url).returncode == 0
    before = schema(url)
    again = run_migrate(url)
    assert (again.returncode, again.stdout) == (0, "")
    assert schema(url) == before


def test_down_leaves_nothing_and_up_works_again(server: EmbeddedPostgres) -> None:
    url = server.url("appointments")
    assert run_migrate(url).returncode == 0
    before = schema(url)
    for _ in MIGRATIONS:
        assert can_write(url)
        down = run_migrate(url, "rollback")
        assert (down.returncode, down.stderr) == (0, "")
    left = [row for row in schema(url) if "schema_migrations" not in row[1]]
    assert left == []
    up = run_migrate(url)
    assert (up.returncode, up.stderr) == (0, "")
    assert schema(url) == before


def test_a_migration_that_would_hold_up_writers_gives_up_soon(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Every write of a table would wait behind a migration that waits for a long read."""
    url = server.url("appointments")
    assert run_migrate(url).returncode == 0
    up, down = migration([], "").split("-- migrate:down")
    change = f"{up}ALTER TABLE appointments ADD COLUMN location text;\n\n-- migrate:down{down}"
    directory = with_migration(tmp_path, change)
    with psycopg.connect(url) as reader:
        reader.execute("LOCK TABLE appointments IN ACCESS SHARE MODE")
        done = run_migrate(url, directory=directory)
    assert done.returncode != 0
    assert "lock timeout" in done.stderr
    assert run_migrate(url, directory=directory).returncode == 0


def test_a_migration_of_a_table_gives_up_soon() -> None:
    """The migrations that `make migration` writes do so too."""
    for path in MIGRATIONS:
        up, _ = path.read_text().split("-- migrate:down")
        if re.search(r"^\s*ALTER TABLE", up, re.MULTILINE):
            assert "SET LOCAL lock_timeout" in up, path.name


def test_a_database_of_the_former_migrations_is_refused(server: EmbeddedPostgres) -> None:
    url = server.url("appointments")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE schema_migrations (version varchar PRIMARY KEY)")
        connection.execute("INSERT INTO schema_migrations VALUES ('20261126000070')")
    done = run_migrate(url)
    assert done.returncode != 0
    assert "CHANGELOG.md" in done.stderr
    assert rows(url, "SELECT to_regclass('organizations')") == [(None,)]


def test_without_a_database_url_it_says_so_in_one_line() -> None:
    done = run_migrate(None)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("DATABASE_URL is not set")


def test_every_migration_can_be_taken_back() -> None:
    def parts(path: Path) -> list[str]:
        lines = path.read_text().splitlines()
        return [line.split()[1] for line in lines if line.startswith("-- migrate:")]

    assert [parts(path) for path in MIGRATIONS] == [["migrate:up", "migrate:down"]] * len(
        MIGRATIONS
    )


def test_the_service_asks_for_every_migration() -> None:
    assert [path.name.partition("_")[0] for path in MIGRATIONS] == list(NEEDED_MIGRATIONS)


@pytest.mark.parametrize("role", [CALLER_ROLE, WORKER_ROLE])
async def test_a_database_that_lacks_an_earlier_migration_is_refused(
    create_database: CreateDatabase, role: str
) -> None:
    url = create_database()
    await check_primary(url, TIMEOUTS, role=role)
    earlier = NEEDED_MIGRATIONS[3]
    with psycopg.connect(url) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE version = %s", (earlier,))
    with pytest.raises(SchemaOutdated) as raised:
        await check_primary(url, TIMEOUTS, role=role)
    assert str(raised.value) == (
        f"the database lacks the migration {earlier}; run 'make migrate' first"
    )


async def test_a_database_that_lacks_all_migrations_is_refused(server: EmbeddedPostgres) -> None:
    with pytest.raises(SchemaOutdated) as raised:
        await check_primary(server.url(DATABASE), TIMEOUTS, role=CALLER_ROLE)
    first = ", ".join(NEEDED_MIGRATIONS[:3])
    assert str(raised.value) == (
        f"the database lacks the migrations {first} and {len(NEEDED_MIGRATIONS) - 3} more;"
        " run 'make migrate' first"
    )


def test_dbmate_and_migrate_apply_the_same_migrations(server: EmbeddedPostgres) -> None:
    """Either can go on where the other one stopped."""
    programs = Path(sys.executable).parent
    ours, theirs = (server.create_database(name) for name in ("ours", "theirs"))

    def dbmate(url: str, command: str) -> str:
        return subprocess.run(
            [programs / "dbmate", "--migrations-dir", "migrations", "--no-dump-schema", command],
            env={"DATABASE_URL": f"{url}&search_path=public"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert run_migrate(ours).returncode == 0
    dbmate(theirs, "migrate")
    assert schema(ours) == schema(theirs)
    assert "Pending: 0" in dbmate(ours, "status")
    assert "Pending: 0" in run_migrate(theirs, "status").stdout
    dbmate(ours, "rollback")
    assert run_migrate(theirs, "rollback").returncode == 0
    assert schema(ours) == schema(theirs)
    assert run_migrate(ours).stdout == f"Applied: {MIGRATIONS[-1].name}\n"


def test_a_migration_that_fails_leaves_nothing_and_is_named(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    text = "-- migrate:up\nCREATE TABLE first ();\nSELECT 1/0;\n\n-- migrate:down\nSELECT 1;\n"
    url = server.url("appointments")
    directory = with_migration(tmp_path, text)
    failed = run_migrate(url, directory=directory)
    assert failed.returncode == 1
    assert failed.stderr == "error: 29990101000000_another.sql: division by zero\n"
    assert rows(url, "SELECT to_regclass('first')") == [(None,)]
    assert "Pending: 1" in run_migrate(url, "status", directory=directory).stdout
    (directory / "29990101000000_another.sql").write_text(text.replace("1/0", "'100%'"))
    assert run_migrate(url, directory=directory).returncode == 0
    assert rows(url, "SELECT to_regclass('first')::text") == [("first",)]


def test_two_files_of_one_version_are_refused(server: EmbeddedPostgres, tmp_path: Path) -> None:
    url = server.url("appointments")
    text = "-- migrate:up\nSELECT 1;\n\n-- migrate:down\nSELECT 1;\n"
    directory = with_migration(tmp_path, text)
    (directory / "29990101000000_other.sql").write_text(text)
    refused = run_migrate(url, directory=directory)
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: 29990101000000_another.sql and 29990101000000_other.sql have the same version\n"
    )
    assert rows(url, "SELECT to_regclass('appointments')") == [(None,)]


def test_an_unknown_command_is_refused(server: EmbeddedPostgres) -> None:
    done = run_migrate(server.url("appointments"), "drop")
    assert done.returncode == 1
    assert done.stderr == "usage: migrate [--wait] [migrate|rollback|status]\n"
