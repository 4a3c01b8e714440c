"""functions.sql and schema.sql match the migrated database."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from local.schema import FUNCTIONS, SCHEMA, differences, dump, migration
from service.postgres.session import CALLER_ROLE, WORKER_ROLE
from service.writes.store import APPLIED
from tests.conftest import CreateDatabase
from tests.postgres.test_migrations import run_migrate, with_migration
from tests.writes.test_safety_layers import upsert

# All that schema.sql shows, but for the table of applied migrations.
CATALOG: LiteralString = """
    WITH ours AS (
        SELECT
            oid, relkind, reloptions, relacl, relowner,
            CASE relkind WHEN 'v' THEN 'own.' ELSE '' END || relname AS relname
        FROM pg_class
        WHERE (
                relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S', 'i')
                OR relnamespace = 'own'::regnamespace AND relkind = 'v'
            )
            AND relname NOT LIKE 'schema_migrations%%'
    )
    SELECT relkind::text, relname, reloptions::text FROM ours
    UNION ALL
    SELECT 'column', relname || '.' || attname, concat_ws(
        ' ', attnum, format_type(atttypid, atttypmod), attcollation::regcollation, attnotnull,
        attidentity, pg_get_expr(adbin, adrelid)
    )
    FROM ours
    JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relkind = 'r'
    UNION ALL
    SELECT 'definition', relname, pg_get_indexdef(oid) FROM ours WHERE relkind = 'i'
    UNION ALL
    SELECT 'definition', relname, pg_get_viewdef(oid) FROM ours WHERE relkind = 'v'
    UNION ALL
    SELECT 'constraint', relname || '.' || conname,
        concat_ws(' ', pg_get_constraintdef(pg_constraint.oid), convalidated)
    FROM ours
    JOIN pg_constraint ON conrelid = ours.oid
    UNION ALL
    SELECT 'privilege', relname, concat_ws(' ', grantee::regrole, privilege_type)
    FROM ours, aclexplode(relacl)
    WHERE grantee <> relowner
    UNION ALL
    SELECT 'privilege', relname || '.' || attname, concat_ws(' ', grantee::regrole, privilege_type)
    FROM ours
    JOIN pg_attribute ON attrelid = ours.oid, aclexplode(attacl)
    UNION ALL
    SELECT 'extension', extname, extnamespace::regnamespace::text
    FROM pg_extension WHERE extname <> 'plpgsql'
    UNION ALL
    SELECT 'schema', nspname || ' for ' || role, has_schema_privilege(role, oid, 'USAGE')::text
    FROM pg_namespace, unnest(%(roles)s::text[]) AS role
    WHERE nspname IN ('public', 'own')
    ORDER BY 1, 2, 3
"""


@pytest.fixture(scope="module")
def migrated(create_database: CreateDatabase) -> str:
    return create_database()


def test_functions_sql_has_the_functions_of_a_migrated_database(migrated: str) -> None:
    found = differences(migrated, FUNCTIONS.read_text())
    names = [change.after or change.before for change in found]
    assert not names, "functions.sql differs; if it is right: make migration NAME=..."


@pytest.mark.parametrize("show", [lambda _: SCHEMA.read_text(), dump], ids=["file", "dump"])
def test_schema_sql_has_the_tables_of_a_migrated_database(
    migrated: str, show: Callable[[str], str]
) -> None:
    def catalog(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
        return connection.execute(CATALOG, {"roles": [CALLER_ROLE, WORKER_ROLE]}).fetchall()

    text = show(migrated)
    with psycopg.connect(migrated) as connection:
        wanted = catalog(connection)
        assert ("column", "appointments.version", "12 integer - t ") in wanted
        connection.execute("DROP SCHEMA own, public CASCADE")
        connection.execute("CREATE SCHEMA public")
        connection.execute(text.encode())
        found = catalog(connection)
        connection.rollback()
    assert found == wanted, "schema.sql differs: make schema"


BODY = ("v_left integer := p_most;", "v_left integer := p_most; -- changed")
SIGNATURE = (
    "CREATE FUNCTION revision_at(p_organization_id text, p_time timestamptz)",
    "CREATE FUNCTION revision_at(p_id text, p_time timestamptz)",
)
RESULT = ("RETURNS TABLE (organization_id text, fence bigint,", "RETURNS TABLE (id text, f bigint,")
SETTING = ("SET lock_timeout = '50ms'", "SET lock_timeout = '60ms'")
PRIVILEGE = (
    "GRANT EXECUTE ON FUNCTION revision_at TO appointments_service, appointments_caller;",
    "",
)
NEW = (
    "-- Webhooks\n",
    (
        "CREATE FUNCTION another(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';\n"
        "REVOKE ALL ON FUNCTION another FROM PUBLIC;\n\n-- Webhooks\n"
    ),
)
OVERLOAD = (
    "CREATE FUNCTION webhook_secrets(p_organization_id text,",
    "CREATE FUNCTION webhook_secrets(p_organization_id varchar,",
)


@pytest.mark.parametrize(
    "edits",
    [[BODY, SETTING], [SIGNATURE, RESULT, NEW], [PRIVILEGE, OVERLOAD]],
)
def test_a_migration_brings_a_database_to_functions_sql_and_back(
    create_database: CreateDatabase, tmp_path: Path, edits: list[tuple[str, str]]
) -> None:
    url = create_database()
    before = FUNCTIONS.read_text()
    after = before
    for old, new in edits:
        assert after.count(old) == 1
        after = after.replace(old, new)
    changes = differences(url, after)
    assert changes
    directory = with_migration(tmp_path, migration(changes, after))
    up = run_migrate(url, directory=directory)
    assert (up.returncode, up.stderr) == (0, "")
    assert differences(url, after) == []
    down = run_migrate(url, "rollback", directory=directory)
    assert (down.returncode, down.stderr) == (0, "")
    assert differences(url, before) == []


def test_a_migration_has_the_changed_functions_alone_with_their_comments(migrated: str) -> None:
    before = FUNCTIONS.read_text()
    after = before.replace(*BODY)
    text = migration(differences(migrated, after), after)
    up, down = text.split("-- migrate:down")
    assert up.count("FUNCTION lease_operations(") == down.count("FUNCTION public.lease_operations(")
    assert up.count("CREATE OR REPLACE FUNCTION") == down.count("CREATE OR REPLACE FUNCTION") == 1
    assert "-- Lease up to p_most organizations" in up


def test_a_new_column_needs_no_other_signature(create_database: CreateDatabase) -> None:
    """Sessions that have called the functions before go on, and the result has the column."""
    url = create_database()
    statement = f"SELECT {APPLIED} FROM apply_writes('o', %s::json)"
    write = {**upsert("a", 8, 9), "idempotency_key": "k", "idempotency_digest": "00"}
    writes = json.dumps([write, write, upsert("b", 9, 10)])
    batch = json.dumps([{"organization_id": "o", "writes": [write]}])
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as session:
        session.execute("SET plan_cache_mode = force_generic_plan")
        first = session.execute(statement.encode(), (writes,)).fetchall()
        session.execute("SELECT * FROM apply_batches(%s::json)", (batch,))
        with psycopg.connect(url) as connection:
            for table in ("appointments", "appointment_history"):
                connection.execute(f"ALTER TABLE {table} ADD location text NOT NULL DEFAULT ''")
        again = session.execute(statement.encode(), (writes,)).fetchall()
        assert [row[0] for row in first] == ["CREATED", "CREATED", "CREATED"]
        assert [row[0] for row in again] == ["CREATED", "CREATED", "UNCHANGED"]
        assert [row[5:] for row in again] == [row[5:] for row in first]
        located = "SELECT (appointment).location FROM apply_batches(%s::json)"
        assert session.execute(located, (batch,)).fetchall() == [("",)]
        created = session.execute(statement.encode(), (json.dumps([upsert("c", 10, 11)]),))
        assert [row[0] for row in created] == ["CREATED"]
