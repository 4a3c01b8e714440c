"""Lock, neighbour check and constraint: each has a guard that fails when it alone is gone.

Every guard is run twice: on the database as migrated, and on one without its layer.
"""

import json
import secrets
import threading
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from service.session import ROLE
from tests.conftest import CreateDatabase
from tests.observing import until

LOCK = r"PERFORM pg_advisory_xact_lock\([^;]*\);"
CHECK = r"IF neighbour\.resource_id = w\.resource_id AND neighbour\.end_time > w\.start_time THEN"


@pytest.fixture(scope="module")
def intact(create_database: CreateDatabase) -> str:
    return create_database()


def without_lock(url: str) -> None:
    _edit_apply_writes(url, LOCK, "")


def without_check(url: str) -> None:
    _edit_apply_writes(url, CHECK, "IF false THEN")


def without_constraint(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE appointments DROP CONSTRAINT appointments_no_overlap")


def _edit_apply_writes(url: str, pattern: str, replacement: str) -> None:
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
    """While one writer's transaction is open, another one wants the same time."""
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
        try:
            connection.execute(insert, (organization,))
        except psycopg.errors.ExclusionViolation as error:
            assert error.diag.constraint_name == "appointments_no_overlap"
        else:
            raise AssertionError("an overlap was stored")


GUARDS = [
    (second_writer_waits_and_is_refused, without_lock),
    (overlap_in_a_batch_is_refused_by_itself, without_check),
    (overlap_written_by_hand_is_refused, without_constraint),
]


@pytest.mark.parametrize(("guard", "_"), GUARDS)
def test_the_layers_hold(intact: str, guard: Callable[[str], None], _: object) -> None:
    guard(intact)


@pytest.mark.parametrize(("guard", "remove"), GUARDS)
def test_a_layer_that_is_gone_is_noticed(
    create_database: CreateDatabase,
    guard: Callable[[str], None],
    remove: Callable[[str], None],
) -> None:
    url = create_database()
    remove(url)
    with pytest.raises(AssertionError):
        guard(url)


def test_without_any_layer_an_overlap_gets_in(create_database: CreateDatabase) -> None:
    """So the guard of the lock really makes the race. The history's key stops it too."""
    url = create_database()
    without_lock(url)
    without_constraint(url)
    with psycopg.connect(url) as connection:
        connection.execute(
            "ALTER TABLE appointment_history DROP CONSTRAINT appointment_history_pkey"
        )
    with pytest.raises(AssertionError):
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


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE appointment_history SET actor = 'someone else'",
        "DELETE FROM appointment_history",
        "TRUNCATE appointment_history",
        "DELETE FROM appointments",
        "DROP TABLE appointment_history",
        "ALTER TABLE appointment_history DROP CONSTRAINT appointment_history_pkey",
        "ALTER TABLE appointments DROP CONSTRAINT appointments_no_overlap",
    ],
)
def test_the_services_role_cannot_rewrite_history(intact: str, statement: str) -> None:
    with psycopg.connect(intact) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(ROLE)))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)
