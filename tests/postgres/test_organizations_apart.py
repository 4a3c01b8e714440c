"""PostgreSQL keeps organizations apart, whatever a statement says.

Every table, every function and every statement for callers is found in the catalog or in the code,
so that a new one is tested too.
"""

import ast
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, LiteralString, cast
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import Diagnostic

from local.programs import ROOT
from service.domain import ALL_CHANGES, AtomicBatch, Upsert
from service.errors import ServiceError, TimeRangeConflict
from service.metrics import Metrics
from service.operations.results import OperationResults
from service.postgres.database import Database
from service.postgres.rows import Row
from service.postgres.session import CALLER_ROLE, WORKER_ROLE
from service.reads.store import Page, ReadStore
from service.reads.window import Window
from service.webhooks.encryption import SecretKeys
from service.webhooks.store import WebhookStore
from service.webhooks.webhook import WebhookContent
from service.writes.store import WriteStore
from tests.conftest import CreateDatabase
from tests.databases import database_of

A, B = "organization a", "organization b"
OPERATION = UUID("0190163d-8694-739b-aea5-966c26f8ad91")

# The functions that a statement for callers may call for several organizations at a time.
FOR_SEVERAL = {
    "apply_batches",
    "current_appointments",
    "finished_operations",
    "listed_appointments",
    "organization_moments",
    "queue_operations",
    "webhook_key_ids",
}
# Those that reach no table.
WITHOUT_TABLES = {"organization_lock_key", "require_no_organization"}

# Hashes of API keys; counters, under hashes of credentials and organizations.
RIGHTS_WITHOUT_ORGANIZATION = {
    ("public.api_keys", "SELECT"),
    ("public.epochs", "SELECT"),
    *(("public.request_buckets", right) for right in ("SELECT", "INSERT", "UPDATE", "DELETE")),
}

TABLES: LiteralString = """
    SELECT t.relname
    FROM pg_class t
    WHERE t.relnamespace = 'public'::regnamespace AND t.relkind IN ('r', 'p')
        AND EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = t.oid AND a.attname = 'organization_id' AND NOT a.attisdropped
        )
    ORDER BY 1
"""

# The tables without a view that shows the rows of one organization, with all columns.
UNGUARDED: LiteralString = f"""
    SELECT guarded.relname
    FROM ({TABLES}) AS guarded
    WHERE NOT EXISTS (
        SELECT FROM pg_class v
        WHERE v.relnamespace = 'own'::regnamespace
            AND v.relkind = 'v'
            AND v.relname = guarded.relname
            AND v.reloptions = '{{check_option=cascaded}}'
            -- PostgreSQL 15 names the table before the column.
            AND replace(
                regexp_replace(pg_get_viewdef(v.oid), '\\s+', ' ', 'g'),
                ' WHERE (' || guarded.relname || '.', ' WHERE ('
            ) LIKE '%% FROM ' || guarded.relname || ' WHERE (organization_id ='
                || ' current_setting(''appointments.organization''::text, true));'
            AND array(
                SELECT attname FROM pg_attribute
                WHERE attrelid = v.oid AND attnum > 0 ORDER BY attname
            ) = array(
                SELECT attname FROM pg_attribute
                WHERE attrelid = ('public.' || guarded.relname)::regclass AND attnum > 0
                    AND NOT attisdropped
                ORDER BY attname
            )
    )
"""

# Values for the columns that a row needs, by type, and where another value is needed.
BY_TYPE = {
    "text": "'x'",
    "bigint": "1",
    "integer": "1",
    "smallint": "0",
    "boolean": "false",
    "json": "'{}'",
    "uuid": "gen_random_uuid()",
    "bytea": r"'\x00'",
    "timestamp with time zone": "now()",
    "text[]": "'{}'",
}
BY_COLUMN = {
    "change": "'CREATED'",
    "end_time": "now() + interval '1 hour'",
    "state": "'ACTIVE'",
    "outcome": "'UNCHANGED'",
}


@pytest.fixture(scope="module")
def url(create_database: CreateDatabase) -> str:
    """A database with rows of two organizations in every table that has organizations."""
    url = create_database()
    with psycopg.connect(url) as connection:
        for table in tables(connection):
            for organization in (A, B):
                insert(connection, f"public.{table}", organization)
    return url


def tables(connection: psycopg.Connection) -> list[str]:
    return [table for (table,) in connection.execute(TABLES)]


def insert(connection: psycopg.Connection, relation: str, organization: str) -> None:
    """Insert a row with the columns that it needs."""
    table = relation.partition(".")[2]
    columns = connection.execute(
        """
        SELECT attname, format_type(atttypid, atttypmod)
        FROM pg_attribute
        WHERE attrelid = ('public.' || %s)::regclass AND attnum > 0 AND attnotnull
            AND NOT atthasdef AND attidentity <> 'a'
            AND attname <> 'organization_id'
        """,
        (table,),
    ).fetchall()
    names = ", ".join(["organization_id", *(name for name, _ in columns)])
    values = ", ".join(["%s", *(BY_COLUMN.get(name, BY_TYPE[kind]) for name, kind in columns)])
    connection.execute(
        f"INSERT INTO {relation} ({names}) VALUES ({values})".encode(), (organization,)
    )


@contextmanager
def transaction_for(url: str, organization: str | None, role: str) -> Iterator[psycopg.Connection]:
    """A transaction as a program of the service has it, rolled back in the end."""
    with psycopg.connect(url) as connection:
        connection.execute("SET search_path = own, public")
        if role:
            connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
        if organization is not None:
            connection.execute(
                "SELECT set_config('appointments.organization', %s, true)", (organization,)
            )
        yield connection
        connection.rollback()


def organizations_in(connection: psycopg.Connection, query: str) -> set[str]:
    return {organization for (organization,) in connection.execute(query.encode())}


def test_every_table_with_organizations_has_its_view(url: str) -> None:
    with psycopg.connect(url) as connection:
        assert len(tables(connection)) > 5
        assert connection.execute(UNGUARDED).fetchall() == []


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE more (organization_id text)",
        "ALTER TABLE appointments ADD location text",
        "DROP VIEW own.appointments; CREATE VIEW own.appointments AS SELECT * FROM appointments",
    ],
)
def test_a_table_without_its_view_is_noticed(url: str, change: LiteralString) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(change)
        assert len(connection.execute(UNGUARDED).fetchall()) == 1
        connection.rollback()


def test_statements_for_callers_read_views_and_no_tables_with_organizations(url: str) -> None:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            """
            SELECT relnamespace::regnamespace || '.' || relname, privilege_type
            FROM pg_class, aclexplode(relacl)
            WHERE grantee IN (0, %(role)s::regrole)
                AND relnamespace IN ('public'::regnamespace, 'own'::regnamespace)
            UNION
            SELECT relnamespace::regnamespace || '.' || relname, privilege_type
            FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid, aclexplode(attacl)
            WHERE grantee IN (0, %(role)s::regrole)
                AND relnamespace IN ('public'::regnamespace, 'own'::regnamespace)
            """,
            {"role": CALLER_ROLE},
        ).fetchall()
    views = {right for relation, right in found if relation.startswith("own.")}
    assert views == {"SELECT"}
    others = {right for right in found if not right[0].startswith("own.")}
    assert others == {("public.schema_migrations", "SELECT"), *RIGHTS_WITHOUT_ORGANIZATION}


def test_a_statement_for_callers_sees_one_organization_at_most(url: str) -> None:
    """It forgets the organization, or names another; or the transaction is for none."""
    readable = set()
    with psycopg.connect(url) as connection:
        every = tables(connection)
    for table in every:
        for organization, seen in ((A, {A}), (B, {B}), ("another", set()), (None, set())):
            with transaction_for(url, organization, CALLER_ROLE) as connection:
                try:
                    found = organizations_in(connection, f"SELECT organization_id FROM {table}")
                except psycopg.errors.InsufficientPrivilege:
                    break
                assert found == seen, table
                named = f"SELECT organization_id FROM {table} WHERE organization_id = '{B}'"
                assert organizations_in(connection, named) == seen & {B}, table
                readable.add(table)
    assert {"organizations", "appointments", "appointment_history", "webhooks"} <= readable
    assert "unchanged_writes" not in readable


@pytest.mark.parametrize("role", [CALLER_ROLE, WORKER_ROLE])
def test_a_program_changes_nothing_by_hand(url: str, role: str) -> None:
    with psycopg.connect(url) as connection:
        every = tables(connection)
    for table in every:
        for statement in (
            f"DELETE FROM {table}",
            f"DELETE FROM {table} WHERE organization_id = '{B}'",
            f"UPDATE {table} SET organization_id = '{A}'",
            f"UPDATE {table} SET organization_id = '{A}' WHERE organization_id = '{B}'",
            f"TRUNCATE {table}",
        ):
            with (
                transaction_for(url, A, role) as connection,
                pytest.raises(
                    (psycopg.errors.InsufficientPrivilege, psycopg.errors.WrongObjectType)
                ),
            ):
                connection.execute(statement.encode())
        with (
            transaction_for(url, A, role) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            insert(connection, f"own.{table}", B)


def test_a_function_changes_one_organization_at_most(url: str) -> None:
    """With all rights of the owner: the functions for one organization use the views."""
    with psycopg.connect(url) as connection:
        every = tables(connection)
    for table in every:
        with transaction_for(url, A, "") as connection:
            rows = f"SELECT organization_id, to_json(t)::text FROM public.{table} t ORDER BY 1, 2"
            of_b = [row for row in connection.execute(rows.encode()) if row[0] == B]
            assert of_b
            named = f"DELETE FROM {table} WHERE organization_id = '{B}'"
            assert connection.execute(named.encode()).rowcount == 0
            with pytest.raises(psycopg.errors.WithCheckOptionViolation), connection.transaction():
                insert(connection, f"own.{table}", "a third")
            with pytest.raises(psycopg.errors.WithCheckOptionViolation), connection.transaction():
                connection.execute(f"UPDATE {table} SET organization_id = 'a third'".encode())
            assert connection.execute(f"DELETE FROM {table}".encode()).rowcount == 1
            assert connection.execute(rows.encode()).fetchall() == of_b


def callable_functions(
    connection: psycopg.Connection, role: str
) -> dict[str, list[tuple[str, str]]]:
    """The functions that a role may call; for each, its parameters with their types."""
    found = connection.execute(
        """
        SELECT p.proname, coalesce(p.proargnames[1], ''), pg_get_function_identity_arguments(p.oid)
        FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace
            AND has_function_privilege(%s, p.oid, 'EXECUTE')
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
        """,
        (role,),
    ).fetchall()
    return {
        name: [tuple(part.split(" ", 1)) for part in arguments.split(", ") if part]
        for name, _, arguments in found
    }


def test_functions_for_callers_refuse_another_organization(url: str) -> None:
    with psycopg.connect(url) as connection:
        functions = callable_functions(connection, CALLER_ROLE)
    assert len(functions) > 10
    for name, parameters in functions.items():
        if name in WITHOUT_TABLES - {"require_no_organization"}:
            continue
        for_one = bool(parameters) and parameters[0] == ("p_organization_id", "text")
        assert for_one != (name in FOR_SEVERAL or name in WITHOUT_TABLES), name
        values = [f"NULL::{kind}" for _, kind in parameters]
        if for_one:
            values[0] = f"'{B}'"
        refusal = "names the organization organization b" if for_one else "a function for several"
        with (
            transaction_for(url, A, CALLER_ROLE) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match=refusal),
        ):
            connection.execute(f"SELECT * FROM {name}({', '.join(values)})".encode())


async def test_a_connection_keeps_no_organization(url: str) -> None:
    """Whether a statement ends well or not, the next one on the connection is for its own."""
    current = "SELECT coalesce(current_setting('appointments.organization', true), '')"
    mine = "SELECT organization_id FROM organizations"
    async with database_of(Database, url, Metrics()) as database:
        pids = set()
        for organization, failing in ((A, "SELECT 1 / 0"), (B, "SELECT 1 / 0"), (A, "SELECT x")):
            assert await database.fetch(organization, current) == [(organization,)]
            assert await database.fetch_across(current) == [("",)]
            assert await database.fetch_across(mine) == []
            with pytest.raises(psycopg.Error):
                await database.fetch(organization, failing)
            assert await database.fetch_across(current) == [("",)]
            assert await database.fetch(organization, mine) == [(organization,)]
            pids |= set(await database.fetch_across("SELECT pg_backend_pid()"))
        assert len(pids) == 1


def places_of_statements() -> set[tuple[str, str]]:
    """The functions in which the service runs a statement for one organization."""
    found = set()
    for path in (ROOT / "service").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef):
                calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
                if any(
                    isinstance(call.func, ast.Attribute)
                    and call.func.attr == "fetch"
                    and ast.unparse(call.func.value)
                    in {"self._database", "self._primary", "primary"}
                    for call in calls
                ):
                    found.add((module, function.name))
    return found


class Confused(Database):
    """A database whose statements are for A, whatever organization they name.

    But for those of the functions in `right`, which others call first.
    """

    places: set[tuple[str, str]]
    right: Sequence[str] = ()

    async def fetch(
        self,
        organization_id: str,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        caller = sys._getframe(1)
        self.places.add((caller.f_globals["__name__"], caller.f_code.co_name))
        if caller.f_code.co_name not in self.right:
            organization_id = A
        return await super().fetch(organization_id, statement, parameters, raw=raw)


def upsert(id: str) -> Upsert:
    start = datetime(2031, 1, 1, ord(id) % 24, tzinfo=UTC)
    return Upsert(
        id=id,
        id_given=True,
        resource_id="",
        additional_resource_ids=(),
        start=start,
        end=start + timedelta(hours=1),
        title="",
        attributes="{}",
        created_at=None,
        updated_at=None,
        hold_until=None,
        max_hold=timedelta(),
        expected_revision=None,
        create_only=False,
        idempotency_key=None,
        validate_only=False,
        suggest=0,
        actor="",
    )


class Overlap(psycopg.errors.ExclusionViolation):
    """A refusal by the exclusion constraint."""

    diag = cast("Diagnostic", SimpleNamespace(constraint_name="appointments_no_overlap"))


def calls(database: Database) -> list[Callable[[], Awaitable[object]]]:
    """Calls about B that reach every statement for one organization."""
    reads = ReadStore(database, None)
    writes = WriteStore(database, Metrics(), lambda: None)
    webhooks = WebhookStore(
        database, SecretKeys([]), changed=lambda: None, most=10, secret_overlap=10.0
    )
    results = OperationResults(
        database,
        Metrics(),
        retention=timedelta(days=1),
        max_hold=timedelta(),
        poll_interval=0.1,
        queued_elsewhere=False,
    )
    window = Window(resource_id=None, start=None, end=None, include_cancelled=True)
    content = WebhookContent(
        url="https://b.example", description="", selected=ALL_CHANGES, disabled=False, headers=()
    )
    past: dict[str, Any] = {"as_of": None, "at": None, "min_revision": None}
    page: dict[str, Any] = {"limit": 10, **past}
    return [
        lambda: reads.revision_at(B, datetime.now(UTC) + timedelta(days=1)),
        # Without min_revision it is read together with those of others.
        lambda: reads.get(B, "x", **{**past, "min_revision": 0}),
        lambda: reads.list(B, window, after=None, **page),
        lambda: reads.changes(B, ALL_CHANGES, after=0, limit=10, min_revision=None),
        lambda: writes.apply(B, [upsert("x")]),
        lambda: writes.apply_atomically(B, AtomicBatch(upserts=[upsert("y")], validate_only=False)),
        # What the constraint refuses is looked for.
        lambda: writes._error_of(B, upsert("z"), Overlap()),
        lambda: results.get(B, OPERATION),
        lambda: results.list(B, filter="", before=None, limit=10),
        lambda: webhooks.create(B, content, after=None),
        lambda: webhooks.list(B),
        lambda: webhooks.get(B, "x"),
        lambda: webhooks.update(B, "x", content),
        lambda: webhooks.rotate(B, "x"),
        lambda: webhooks.replay(B, "x", after=0),
    ]


def calls_after_get(database: Database) -> list[Callable[[], Awaitable[object]]]:
    """The same, of those that look at the webhook first."""
    webhooks = WebhookStore(
        database, SecretKeys([]), changed=lambda: None, most=10, secret_overlap=10.0
    )

    async def deliveries() -> object:
        found, _ = await webhooks.deliveries(B, "x", before=100, limit=10)
        return found

    return [deliveries, lambda: webhooks.delete(B, "x")]


def state(url: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return [
            connection.execute(
                f"SELECT to_json(t)::text FROM public.{table} t ORDER BY 1".encode()
            ).fetchall()
            for table in tables(connection)
        ]


def is_nothing(found: object) -> bool:
    """Whether a call was refused or found nothing."""
    match found:
        case TimeRangeConflict():  # what the database found
            return False
        case ServiceError() | psycopg.errors.InsufficientPrivilege():
            return True
        case Page():
            return found.revision == 0 and not found.items
        case [one]:
            return is_nothing(one)
        case [[], 0] | []:
            return True
    return False


async def results_of(calls: Sequence[Callable[[], Awaitable[object]]]) -> list[object]:
    results: list[object] = []
    for call in calls:
        try:
            results.append(await call())
        except (ServiceError, psycopg.errors.InsufficientPrivilege) as error:
            results.append(error)
    return results


async def test_every_statement_with_the_wrong_organization_does_nothing(
    create_database: CreateDatabase,
) -> None:
    url = create_database()
    with psycopg.connect(url) as connection:
        for table in tables(connection):
            insert(connection, f"public.{table}", B)
        connection.execute(
            "UPDATE operations SET operation_id = %s, outcome = 'ETAG_MISMATCH'", (OPERATION,)
        )
    before = state(url)
    async with database_of(Confused, url, Metrics()) as database:
        database.places = set()
        confused = await results_of(calls(database))
        database.right = ["get"]
        confused += await results_of(calls_after_get(database))
    assert [found for found in confused if not is_nothing(found)] == []
    assert state(url) == before
    assert database.places == places_of_statements(), "a call is missing above"
    # With the right organization, the same calls find and change something.
    async with database_of(Database, url, Metrics()) as right:
        found = await results_of([*calls(right), *calls_after_get(right)])
    assert [result for result in found if is_nothing(result)] == []
    assert state(url) != before
