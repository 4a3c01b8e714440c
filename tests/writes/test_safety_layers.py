"""Lock, neighbour check and constraint: each has a guard that fails if it alone is removed.

Every guard is run twice: on the database as migrated, and on one without its layer.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from local.programs import ROOT
from service.postgres.session import WORKER_ROLE
from tests.conftest import CreateDatabase
from tests.observing import until

LOCK = r"PERFORM pg_advisory_xact_lock\([^;]*\);"
LAST_RIGHTS = ROOT / "migrations" / "20261126000105_functions.sql"
HOLD_END = r"IF neighbour\.hold_until <= v_recorded_at THEN"
EXPIRED = r"ELSIF stored\.state = 'EXPIRED' THEN(?=\s+v_outcome := 'HOLD_EXPIRED')"
CHECK = r"AND neighbour\.end_time > w\.start_time THEN"


@pytest.fixture(scope="module")
def intact(create_database: CreateDatabase) -> str:
    return create_database()


def without_lock(url: str) -> None:
    edit_apply_writes(url, LOCK, "")


def without_check(url: str) -> None:
    edit_apply_writes(url, CHECK, "AND false THEN")


def without_hold_end(url: str) -> None:
    edit_apply_writes(url, HOLD_END, "IF neighbour.hold_until IS NOT NULL THEN")


def without_expiry(url: str) -> None:
    edit_apply_writes(url, EXPIRED, "ELSIF false THEN")


def without_constraint(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE appointments DROP CONSTRAINT appointments_no_overlap")


def edit_apply_writes(url: str, pattern: str, replacement: str) -> None:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT regexp_replace(source, %(pattern)s, %(replacement)s),"
            " regexp_count(source, %(pattern)s)"
            " FROM pg_get_functiondef('apply_writes'::regproc) AS source",
            {"pattern": pattern, "replacement": replacement},
        ).fetchone()
        assert row is not None
        assert row[1] == 1, "the layer is not where this test looks for it"
        connection.execute(row[0])


def upsert(id: str, start: int, end: int) -> dict[str, object]:
    return {
        "kind": "UPSERT",
        "id": id,
        "resource_id": "",
        "start_time": f"2030-01-07T{start:02}:00:00Z",
        "end_time": f"2030-01-07T{end:02}:00:00Z",
        "title": "",
        "attributes": {},
        "create_only": False,
        "actor": "",
        "validate_only": False,
    }


def apply(
    connection: psycopg.Connection, organization: str, *writes: dict[str, object]
) -> list[str]:
    rows = connection.execute(
        "SELECT outcome FROM apply_writes(%s, %s::json)", (organization, json.dumps(writes))
    )
    return [outcome for (outcome,) in rows]


def overlapping_pairs(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM appointments a JOIN appointments b"
            " ON a.organization_id = b.organization_id AND a.resource_id = b.resource_id"
            " AND a.appointment_id < b.appointment_id"
            " AND a.state = 'ACTIVE' AND b.state = 'ACTIVE'"
            " AND a.start_time < b.end_time AND b.start_time < a.end_time"
        ).fetchone()
    assert row is not None
    pairs: int = row[0]
    return pairs


def second_writer_waits_and_is_refused(url: str) -> None:
    """While one writer's transaction is open, another one wants the same range."""
    organization = secrets.token_hex(8)
    outcome: list[object] = []

    def write_second() -> None:
        try:
            outcome.extend(apply(second, organization, upsert("second", 9, 11)))
        except psycopg.Error as error:
            outcome.append(error)

    with (
        psycopg.connect(url) as first,
        psycopg.connect(url, autocommit=True) as second,
        psycopg.connect(url, autocommit=True) as watcher,
    ):
        assert apply(first, organization, upsert("first", 8, 10)) == ["CREATED"]
        writer = threading.Thread(target=write_second)
        writer.start()
        waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        until(
            lambda: (
                bool(outcome)
                or watcher.execute(waits, (second.info.backend_pid,)).fetchone() == (True,)
            )
        )
        first.commit()
        writer.join()
    assert outcome == ["TIME_RANGE_CONFLICT"]
    assert overlapping_pairs(url) == 0


def overlap_in_a_batch_is_refused_by_itself(url: str) -> None:
    organization = secrets.token_hex(8)
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            outcomes = apply(
                connection,
                organization,
                upsert("a", 8, 10),
                upsert("b", 9, 11),
                upsert("c", 10, 11),
            )
        except psycopg.errors.ExclusionViolation as error:
            raise AssertionError("only the constraint noticed") from error
    assert outcomes == ["CREATED", "TIME_RANGE_CONFLICT", "CREATED"]


def a_hold_that_has_not_expired_is_in_the_way(url: str) -> None:
    organization = secrets.token_hex(8)
    end = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    held = {**upsert("a", 8, 10), "hold_until": end, "max_hold": 60}
    with psycopg.connect(url, autocommit=True) as connection:
        assert apply(connection, organization, held) == ["CREATED"]
        try:
            outcomes = apply(connection, organization, upsert("b", 9, 11))
        except psycopg.errors.ExclusionViolation as error:
            raise AssertionError("only the constraint noticed") from error
    assert outcomes == ["TIME_RANGE_CONFLICT"]


def an_expired_hold_is_not_confirmed(url: str) -> None:
    """Another appointment took its place."""
    organization = secrets.token_hex(8)
    end = datetime.now(UTC) + timedelta(seconds=1.5)
    held = {**upsert("a", 8, 10), "hold_until": end.isoformat(), "max_hold": 60}
    confirm = {"kind": "CONFIRM", "id": "a", "actor": "", "validate_only": False}
    with psycopg.connect(url, autocommit=True) as connection:
        assert apply(connection, organization, held) == ["CREATED"]
        until(lambda: datetime.now(UTC) >= end)
        try:
            outcomes = apply(connection, organization, upsert("b", 9, 11), confirm)
        except psycopg.errors.ExclusionViolation as error:
            raise AssertionError("only the constraint noticed") from error
    assert outcomes == ["CREATED", "HOLD_EXPIRED"]


def expect_refusal(
    connection: psycopg.Connection,
    statement: LiteralString,
    row: Mapping[str, object] | Sequence[object],
) -> None:
    """Assert that the exclusion constraint refuses a row."""
    try:
        connection.execute(statement, row)
    except psycopg.errors.ExclusionViolation as error:
        assert error.diag.constraint_name == "appointments_no_overlap"
    else:
        raise AssertionError("an overlap was stored")


def overlap_written_by_hand_is_refused(url: str) -> None:
    organization = secrets.token_hex(8)
    insert = (
        "INSERT INTO appointments (organization_id, appointment_id, resource_id, start_time,"
        " end_time, title, attributes, created_at, updated_at, updated_at_given, state, version,"
        " revision) VALUES (%s, 'b', '', '2030-01-07 09:00Z', '2030-01-07 11:00Z', '', '{}',"
        " now(), now(), false, 'ACTIVE', 1, 2)"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        apply(connection, organization, upsert("a", 8, 10))
        expect_refusal(connection, insert, (organization,))


HELD_RESOURCES = ("doctor", "room", "device")


def overlap_with_a_hold_written_by_hand_is_refused(url: str) -> None:
    """On each of its resources, by an appointment and by a hold, also when it has expired."""
    organization = secrets.token_hex(8)
    end = datetime.now(UTC) + timedelta(seconds=1.5)
    held = {
        **upsert("a", 8, 10),
        "resource_id": HELD_RESOURCES[0],
        "additional_resource_ids": HELD_RESOURCES[1:],
        "hold_until": end.isoformat(),
        "max_hold": 60,
    }
    insert = (
        "INSERT INTO appointments (organization_id, appointment_id, resource_id, start_time,"
        " end_time, title, attributes, created_at, updated_at, updated_at_given, state, version,"
        " revision, hold_until) VALUES (%(organization)s, 'b', %(resource)s,"
        " '2030-01-07 09:00Z', '2030-01-07 11:00Z', '', '{}', now(), now(), false, %(state)s, 1,"
        " 2, %(end)s)"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        assert apply(connection, organization, held) == ["CREATED"]
        for due in (False, True):
            for resource in HELD_RESOURCES:
                for state, hold_until in (("ACTIVE", None), ("HELD", end)):
                    row = {
                        "organization": organization,
                        "resource": resource,
                        "state": state,
                        "end": hold_until,
                    }
                    expect_refusal(connection, insert, row)
            if not due:
                until(lambda: datetime.now(UTC) >= end)
        # What apply_writes records as expired is no longer in the way.
        writes = [
            {**upsert(f"new {resource}", 9, 11), "resource_id": resource}
            for resource in HELD_RESOURCES
        ]
        assert apply(connection, organization, *writes) == ["CREATED"] * 3


# Each with its layer, and with what it notices when that is gone: the layers behind it still
# keep the overlap out, but with another answer or none.
GUARDS = [
    (second_writer_waits_and_is_refused, without_lock, r"ExclusionViolation\("),
    (overlap_in_a_batch_is_refused_by_itself, without_check, "^only the constraint noticed$"),
    (overlap_written_by_hand_is_refused, without_constraint, "^an overlap was stored$"),
    (overlap_with_a_hold_written_by_hand_is_refused, without_constraint, "^an overlap was stored$"),
    (a_hold_that_has_not_expired_is_in_the_way, without_hold_end, "^only the constraint noticed$"),
    (an_expired_hold_is_not_confirmed, without_expiry, "^only the constraint noticed$"),
]


@pytest.mark.parametrize("guard", [guard for guard, _, _ in GUARDS])
def test_the_layers_hold(intact: str, guard: Callable[[str], None]) -> None:
    guard(intact)


@pytest.mark.parametrize(("guard", "remove", "noticed"), GUARDS)
def test_a_layer_that_is_gone_is_noticed(
    create_database: CreateDatabase,
    guard: Callable[[str], None],
    remove: Callable[[str], None],
    noticed: str,
) -> None:
    url = create_database()
    remove(url)
    with pytest.raises(AssertionError, match=noticed):
        guard(url)


def test_without_any_layer_an_overlap_gets_in(create_database: CreateDatabase) -> None:
    """The guard of the lock really causes the race, which the history's key stops too."""
    url = create_database()
    without_lock(url)
    without_constraint(url)
    with psycopg.connect(url) as connection:
        connection.execute(
            "ALTER TABLE appointment_history DROP CONSTRAINT appointment_history_pkey"
        )
    with pytest.raises(AssertionError, match=r"assert \['CREATED'\] == "):
        second_writer_waits_and_is_refused(url)
    assert overlapping_pairs(url) == 1


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_other_isolation_levels_are_refused(intact: str, level: str) -> None:
    with psycopg.connect(intact) as connection:
        connection.isolation_level = psycopg.IsolationLevel[level.replace(" ", "_")]
        with pytest.raises(
            psycopg.errors.FeatureNotSupported, match=f"READ COMMITTED, not {level}"
        ):
            apply(connection, "o", upsert("a", 8, 9))


WEBHOOK_PLACE = (
    "disabled",
    "disabled_reason",
    "updated_at",
    "cursor_revision",
    "attempts",
    "failing_since",
    "next_attempt_at",
    "leased_until",
    "fence",
)
WEBHOOK_CONTENT = (
    "organization_id",
    "webhook_id",
    "url",
    "description",
    "changes",
    "resource_id",
    "header_names",
    "created_at",
)

# What the service's role may do with tables directly; for all else it calls functions.
RIGHTS = {
    "organizations": {"SELECT"},
    "epochs": {"SELECT"},
    "appointments": {"SELECT"},
    "appointment_history": {"SELECT"},
    "unchanged_writes": {"SELECT"},
    "queued_operations": {"SELECT", "INSERT"},
    "operations": {"SELECT", "DELETE"},
    "operation_leases": {"SELECT", "UPDATE (attempts)", "UPDATE (leased_until)"},
    "purged_organizations": {"SELECT", "DELETE"},
    "webhooks": {
        "DELETE",
        *(f"SELECT ({column})" for column in (*WEBHOOK_PLACE, *WEBHOOK_CONTENT)),
        *(f"UPDATE ({column})" for column in WEBHOOK_PLACE),
    },
    "webhook_deliveries": {"SELECT", "INSERT", "DELETE"},
    "event_cursors": {"SELECT", "INSERT", "UPDATE"},
    "event_publishers": {"SELECT", "INSERT", "UPDATE"},
    "api_keys": {"SELECT"},
    "request_buckets": {"SELECT", "INSERT", "UPDATE", "DELETE"},
    "schema_migrations": {"SELECT"},
}


def test_the_services_role_has_these_rights_on_tables_and_no_others(intact: str) -> None:
    with psycopg.connect(intact) as connection:
        found = connection.execute(
            """
            SELECT relname, privilege_type
            FROM pg_class, aclexplode(relacl) AS granted
            WHERE relnamespace = 'public'::regnamespace AND grantee IN (0, %(role)s::regrole)
            UNION ALL
            SELECT relname, format('%%s (%%s)', privilege_type, attname)
            FROM pg_class
            JOIN pg_attribute ON attrelid = pg_class.oid, aclexplode(attacl) AS granted
            WHERE relnamespace = 'public'::regnamespace AND grantee IN (0, %(role)s::regrole)
            """,
            {"role": WORKER_ROLE},
        ).fetchall()
    rights: dict[str, set[str]] = {}
    for table, right in found:
        rights.setdefault(table, set()).add(right)
    assert rights == RIGHTS


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE appointment_history",
        "ALTER TABLE appointment_history DROP CONSTRAINT appointment_history_pkey",
        "ALTER TABLE appointments DROP CONSTRAINT appointments_no_overlap",
        "ALTER FUNCTION apply_writes SECURITY INVOKER",
        "CREATE TABLE more (id text)",
        "CREATE FUNCTION hashtextextended(text, integer) RETURNS bigint LANGUAGE sql RETURN 1",
        *(
            f"{verb} {table}{rest}"
            for table in (
                "appointment_history",
                "appointments",
                "organizations",
                "unchanged_writes",
            )
            for verb, rest in (
                ("INSERT INTO", " SELECT * FROM " + table),
                ("UPDATE", " SET organization_id = 'another'"),
                ("DELETE FROM", ""),
                ("TRUNCATE", ""),
            )
        ),
    ],
)
def test_the_services_role_cannot_write_past_the_functions(intact: str, statement: str) -> None:
    with as_role(intact, WORKER_ROLE) as connection:
        assert apply(connection, "o", upsert(secrets.token_hex(8), 8, 9))[0] in ALLOWED
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


# The first of the statements above books the hour.
ALLOWED = ("CREATED", "TIME_RANGE_CONFLICT")


def test_functions_can_be_called_by_the_services_role_alone(intact: str) -> None:
    stranger = f"stranger_{secrets.token_hex(8)}"
    with psycopg.connect(intact, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(stranger)))
        try:
            open_to_all = admin.execute(
                f"SELECT p.proname {OURS} AND has_function_privilege(%s, p.oid, 'EXECUTE')",
                (stranger,),
            )
            assert open_to_all.fetchall() == []
            with (
                as_role(intact, stranger) as connection,
                pytest.raises(psycopg.errors.InsufficientPrivilege, match="apply_writes"),
            ):
                apply(connection, "o", upsert("a", 8, 9))
        finally:
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(stranger)))


def test_a_function_with_its_owners_rights_pins_where_it_looks(intact: str) -> None:
    """Otherwise a caller could shadow a table or function by its own."""
    with psycopg.connect(intact) as connection:
        found = connection.execute(
            f"SELECT p.oid::regprocedure::text, p.proconfig {OURS} AND p.prosecdef"
        )
        settings: dict[str, list[str]] = dict(found.fetchall())
    assert "apply_writes(text,json,boolean)" in settings
    assert [name for name, pinned in settings.items() if not SEARCH_PATHS & set(pinned)] == []


SEARCH_PATHS = {"search_path=public, pg_temp", "search_path=own, public, pg_temp"}

# Ours, not those of extensions.
OURS: LiteralString = """
    FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
"""


def test_a_function_whose_owner_lacks_rights_is_not_migrated(
    create_database: CreateDatabase,
) -> None:
    """If another user migrates a part, every call would be refused."""
    url = create_database()
    owner = f"owner_{secrets.token_hex(8)}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(owner)))
        try:
            to_owner = sql.SQL("ALTER FUNCTION apply_writes OWNER TO {}")
            admin.execute(to_owner.format(sql.Identifier(owner)))
            up, _, _ = LAST_RIGHTS.read_text().partition("-- migrate:down")
            check = up[up.rindex("DO $$") :]
            with pytest.raises(
                psycopg.errors.RaiseException, match=f"apply_writes belongs to {owner}"
            ):
                admin.execute(check.encode())
            admin.execute("ALTER FUNCTION apply_writes OWNER TO CURRENT_USER")
            admin.execute(check.encode())
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(owner)))
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(owner)))


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT secret FROM webhooks",
        "SELECT old_secrets FROM webhooks",
        "SELECT header_values FROM webhooks",
        "SELECT * FROM webhooks",
        "SELECT w FROM webhooks w",
        "COPY webhooks TO STDOUT",
        "UPDATE webhooks SET disabled = true RETURNING secret",
        "DELETE FROM webhooks RETURNING secret",
        "UPDATE webhooks SET secret = 'whsec_AAAA'",
        "UPDATE webhooks SET url = 'https://elsewhere.example'",
        "INSERT INTO webhooks (organization_id, webhook_id) VALUES ('o', 'w')",
    ],
)
def test_a_look_at_the_table_shows_no_secret_of_a_webhook(intact: str, statement: str) -> None:
    with as_role(intact, WORKER_ROLE) as connection:
        connection.execute("SELECT url, header_names, disabled FROM webhooks")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


@contextmanager
def as_role(url: str, role: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        yield connection
