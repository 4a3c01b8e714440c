"""What Citus asks of tables, functions and statements, as far as PostgreSQL alone can show it.

docs/scaling.md has the rules. The last two tests run the calls of the service on a database with
the functions of migrations/citus.sql, and look at the plan of every statement, in functions too.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from local.schema import FUNCTIONS, MIGRATIONS, blocks_of
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.distribution import DELEGATED, TABLES, VARIANTS
from service.postgres.rows import Row
from service.postgres.session import DISTRIBUTED_SETTINGS
from tests.citus.test_variants import ONLY_THERE, REPLACES
from tests.conftest import CreateDatabase
from tests.databases import apply_variants, database_of
from tests.postgres.test_organizations_apart import (
    OPERATION,
    B,
    calls,
    calls_after_get,
    insert,
    results_of,
    tables,
)

# Functions that callers or workers may call, that change or lock something of one organization, and
# that no program calls in a statement of its own.
NOT_CALLED_ALONE = {
    "webhook_secrets": "read by functions, on the node or for a webhook that is claimed",
}

# Functions for several organizations, which run on the coordinator. Their statements may be on
# several shards.
FOR_SEVERAL = {
    "advance_cursors": "the cursors of a publisher",
    "apply_batches": "never called: each organization has a call of its own",
    "apply_queued_operations": "never called: apply_queued is",
    "claim_webhooks": "finds, then one statement each",
    "count_queued_operations": "a metric",
    "finished_operations": "looks for the operations that are waited for",
    "lease_operations": "finds, then one statement each",
    "organization_moments": "the organizations that are asked for",
    "queue_operations": "called for one organization at a time",
    "release_operations": "one statement each",
    "webhook_key_ids": "all webhooks",
    "webhooks_without_key": "all webhooks",
}

TABLE = re.compile(rf"\b(?:FROM|JOIN|INTO|UPDATE)\s+(?:public\.)?({'|'.join(TABLES)})\b")


@pytest.fixture
def url(create_database: CreateDatabase) -> str:
    """A database in the form for Citus, without the extension, with rows of B."""
    url = create_database()
    apply_variants(url)
    with psycopg.connect(url) as connection:
        for table in tables(connection):
            insert(connection, f"public.{table}", B)
        connection.execute(
            "UPDATE operations SET operation_id = %s, outcome = 'ETAG_MISMATCH'", (OPERATION,)
        )
    return url


def bodies() -> dict[str, str]:
    """The functions as they are in a distributed database, without comments."""
    plain, variants = FUNCTIONS.read_text(), VARIANTS.read_text()
    replaced = {
        name: block
        for name, block in blocks_of(variants.replace("OR REPLACE ", "")).items()
        if name in dict(REPLACES.findall(variants)) or name in ONLY_THERE
    }
    texts = blocks_of(plain) | replaced
    return {name: re.sub(r"--.*", "", text) for name, text in texts.items()}


def statements(body: str) -> list[str]:
    if "$$" not in body:
        return []
    return re.split(r";|\b(?:BEGIN|THEN|ELSE|LOOP)\n", body.split("$$")[1])


def test_every_table_with_organizations_is_distributed(url: str) -> None:
    with psycopg.connect(url) as connection:
        assert sorted(TABLES) == tables(connection)
        for table in TABLES:
            # Each unique index and exclusion constraint has the organization, first.
            found = connection.execute(
                """
                SELECT i.indexrelid::regclass::text, a.attname
                FROM pg_index i
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                WHERE i.indrelid = %s::regclass AND (i.indisunique OR i.indisexclusion)
                """,
                (table,),
            ).fetchall()
            assert {column for _, column in found} == {"organization_id"}, table


def test_every_function_that_writes_for_one_organization_is_delegated(url: str) -> None:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            """
            SELECT p.proname, p.proargnames[1] = 'p_organization_id'
            FROM pg_proc p
            WHERE p.pronamespace = 'public'::regnamespace AND p.provolatile = 'v'
                AND EXISTS (
                    SELECT 1 FROM aclexplode(p.proacl) WHERE grantee IN (
                        'appointments_service'::regrole, 'appointments_caller'::regrole
                    )
                )
            """
        ).fetchall()
    for_one = {name for name, is_for_one in found if is_for_one}
    assert for_one - set(DELEGATED) == set(NOT_CALLED_ALONE)
    others = {name for name, is_for_one in found if not is_for_one} - {"require_no_organization"}
    assert others <= FOR_SEVERAL.keys()


def test_functions_are_in_a_form_that_citus_can_plan() -> None:
    functions = bodies()
    reading = {name for name, body in functions.items() if TABLE.search(body)}
    # And those that call them.
    while more := {
        name
        for name, body in functions.items()
        if name not in reading
        and any(
            re.search(rf"\b{other}\(", body.split("$$")[1]) for other in reading if "$$" in body
        )
    }:
        reading |= more
    assert {"apply_writes", "conflicting_appointments", "apply_queued"} <= reading
    for name, body in functions.items():
        if name in {"apply_batches", "apply_queued_operations"}:
            continue
        if TABLE.search(body):
            assert "LANGUAGE plpgsql" in body, f"{name}: no parameters in SQL functions"
        assert not re.search(r"\bctid\b", body), f"{name}: a ctid is that of a shard"
        assert not re.search(r"\b(?:SELECT|PERFORM)\s+FROM\b", body), f"{name}: select a column"
        for statement in statements(body):
            if TABLE.search(statement):
                nested = [
                    other
                    for other in reading
                    if re.search(rf"\b{other}\(", statement) and name not in FOR_SEVERAL
                ]
                writing = nested == ["apply_writes"] and "INSERT INTO operations" in statement
                assert not nested or writing, f"{name} reads tables twice: {statement}"


def test_later_migrations_contain_nothing_that_a_distributed_table_cannot_have() -> None:
    later = [path for path in MIGRATIONS.glob("[0-9]*.sql") if path.name > "20261126000118"]
    assert later
    for path in later:
        text = re.sub(r"--.*", "", path.read_text())
        assert not re.search(r"CREATE (?:OR REPLACE )?TRIGGER", text), path.name
        assert not re.search(r"GRANT \w+ \(", text), f"{path.name}: rights on columns"
        assert not re.search(r"FOREIGN KEY|REFERENCES", text), path.name


def scans(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parts of a plan that read or change a distributed table."""
    if plan.get("Relation Name") in TABLES and plan["Node Type"] != "ModifyTable":
        yield plan
    for part in plan.get("Plans", ()):
        yield from scans(part)


def names_organization(scan: Mapping[str, Any]) -> bool:
    conditions = " ".join(
        str(value) for key, value in scan.items() if key.endswith(("Cond", "Filter"))
    )
    if scan["Node Type"] == "Bitmap Heap Scan":
        conditions += " ".join(str(part) for part in scan["Plans"])
    # Equal to a constant or a parameter, not to a column of another table.
    return bool(re.search(r"organization_id = (?:\$\d+|'[^']*'::text|\('[^']*'\))", conditions))


class Recording(Database):
    """Keeps the statements for one organization."""

    seen: list[tuple[LiteralString, Any]]

    async def fetch(
        self,
        organization_id: str,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        self.seen.append((statement, parameters))
        return await super().fetch(organization_id, statement, parameters, raw=raw)


async def test_each_statement_for_one_organization_names_it_on_every_table(url: str) -> None:
    async with database_of(Recording, url, Metrics(), distributed=True) as database:
        database.seen = []
        await results_of([*calls(database), *calls_after_get(database)])
    assert len(database.seen) > 15
    called = set()
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET search_path = public; SET enable_seqscan = off")
        for statement, parameters in database.seen:
            if function := re.match(r"\s*SELECT .*?\b(\w+)\(\s*%", statement, re.DOTALL):
                called.add(function[1])
                continue
            explained = connection.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
            [(found,)] = explained.fetchall()
            for scan in scans(found[0]["Plan"]):
                assert names_organization(scan), (statement, scan)
    assert called <= set(DELEGATED)
    assert {"apply_writes", "create_webhook", "revision_at"} <= called


def nested_plans(
    connection: psycopg.Connection, statements: Sequence[str]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Run statements; return the text and the plan of every statement in the functions."""
    found: list[tuple[str, Mapping[str, Any]]] = []

    def keep(diagnostic: psycopg.errors.Diagnostic) -> None:
        text = diagnostic.message_primary or ""
        if "plan:\n" in text:
            logged = json.loads(text.partition("plan:\n")[2])
            found.append((logged["Query Text"], logged["Plan"]))

    connection.execute("LOAD 'auto_explain'")
    for name, value in {
        "log_min_duration": "0",
        "log_nested_statements": "on",
        "log_format": "json",
        "log_level": "notice",
    }.items():
        connection.execute(
            sql.SQL("SET {} = {}").format(sql.Identifier("auto_explain", name), value)
        )
    connection.add_notice_handler(keep)
    for statement in statements:
        connection.execute(statement.encode())
    return found


def test_each_statement_in_a_delegated_function_names_its_organization(url: str) -> None:
    start = datetime(2031, 5, 1, tzinfo=UTC)

    def write(kind: str, id: str, hour: int, **more: object) -> dict[str, object]:
        return {
            "kind": kind, "id": id, "resource_id": "r", "title": "t",
            "attributes": {}, "actor": "a",
            "start_time": start.replace(hour=hour).isoformat(),
            "end_time": start.replace(hour=hour + 1).isoformat(),
            "create_only": False, "validate_only": False, **more,
        }  # fmt: skip

    def literal(value: object) -> str:
        return "'" + json.dumps(value) + "'"

    key = {"idempotency_key": "k", "idempotency_digest": "00"}
    several = [
        write("UPSERT", "m", 1, suggest=2, **key),
        write("UPSERT", "m", 1, **key),
        write("UPSERT", "n", 1, suggest=2, additional_resource_ids=["s"]),
        write("UPSERT", "n", 3, additional_resource_ids=["s"]),
        write("REDACT", "m", 1, idempotency_key="l", idempotency_digest="00"),
    ]
    swap = [write("UPSERT", "m", 3), write("UPSERT", "n", 1, additional_resource_ids=["s"])]
    clash = [write("UPSERT", "m", 5), write("UPSERT", "p", 5)]
    one = literal(clash[0])
    accepted = [
        {"operation_id": str(uuid4()), "accepted_at": start.isoformat(), "write": each}
        for each in (write("UPSERT", "q", 7), write("UPSERT", "p", 7))
    ]
    sent = {"revision": 1, "attempt": 1, "seconds_ago": 0, "duration_ms": 1, "error": "e"}
    id = f"'{B}', 'w'"
    calls = [
        f"apply_writes('{B}', {literal(several)})",
        f"apply_atomically('{B}', {literal(swap)}, false)",
        f"apply_atomically('{B}', {literal(clash)}, false)",
        f"apply_operations('{B}', {literal(accepted)})",
        f"refuse_operation('{B}', gen_random_uuid(), now(), {one}, NULL)",
        f"refuse_operation('{B}', gen_random_uuid(), now(), {one}, 'x')",
        f"give_up_operation('{B}', 1, 'x')",
        f"apply_queued('{B}', 1, false, 10, '1 s')",
        f"create_webhook({id}, 'u', '', '{{}}', false, '{{}}', '{{}}', 's', NULL, 10)",
        f"replace_webhook({id}, 'v', '', '{{}}', false, '{{a}}', '{{b}}')",
        f"replay_webhook({id}, 0)",
        f"rotate_webhook_secret({id}, 'z', 5)",
        f"advance_webhook({id}, 0, 0, 1, false, 5, '[]')",
        f"fail_webhook({id}, 0, 1, now(), 1, true, 5, {literal([sent])})",
        f"release_webhook({id}, 0, 1)",
        f"reencrypt_webhook({id}, '{{z,s}}', '{{b}}', '{{y,x}}', '{{c}}')",
        f"revision_at('{B}', now())",
        f"conflicts_of_write('{B}', {one})",
        f"no_write_in_progress('{B}')",
        f"delete_webhook({id})",
        f"purge_organization('{B}')",
    ]
    assert {call.partition("(")[0] for call in calls} == set(DELEGATED)
    with psycopg.connect(url, autocommit=True) as connection:
        for name, value in {**DISTRIBUTED_SETTINGS, "enable_seqscan": "off"}.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        found = nested_plans(connection, [f"SELECT * FROM {call}" for call in calls])
    read = [(text, scan) for text, plan in found for scan in scans(plan)]
    assert {scan["Relation Name"] for _, scan in read} == set(TABLES)
    assert [(text, scan) for text, scan in read if not names_organization(scan)] == []
