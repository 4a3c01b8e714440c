"""Failures of one operation or organization do not affect others."""

import time
from contextlib import ExitStack

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb

from tests.api import refusal_of
from tests.conftest import StartProgram
from tests.observing import PATIENT, held_lock, until
from tests.operations.place import SHORT, Place, queued_write
from tests.operations.submissions import metadata_of


@pytest.mark.parametrize(
    "bad",
    [
        {"end_time": "2030-01-07T07:00:00Z"},
        {"start_time": "never"},
        {"kind": "UPSERT", "attributes": None},
        {"expected_revision": "many"},
    ],
)
def test_an_operation_that_the_database_refuses_fails_alone(
    place: Place, start_place_worker: StartProgram, bad: dict[str, object]
) -> None:
    org = place.organization("o")
    place.queue(
        "o",
        queued_write("1", 1),
        queued_write("bad", 600, **bad),
        queued_write("2", 2),
        queued_write("3", 3),
    )
    before = org.upsert("4", 4, 5)
    place.queue("other", queued_write("1", 1))
    start_place_worker()
    assert metadata_of(org.wait(before)).outcome == pb.CREATED
    until(place.all_applied)
    assert [entry.appointment.id for entry in org.org.changes()] == ["1", "2", "3", "4"]
    [name] = org.listed(filter="error:*")
    failed = org.get(name)
    assert metadata_of(failed).appointment_id == "bad"
    failure = refusal_of(failed.error, grpc.StatusCode.INTERNAL)
    assert failure.reason == "OPERATION_FAILED"
    assert place.count("operations", "failure IS NOT NULL AND write IS NOT NULL") == 1
    assert len(place.organization("other").org.changes()) == 1


def test_an_operation_that_is_no_write_fails_alone(
    place: Place, start_place_worker: StartProgram
) -> None:
    place.queue("o", "5", queued_write("1", 1), "{}", "[]", '"x"', queued_write("2", 2))
    start_place_worker()
    until(place.all_applied)
    assert len(place.organization("o").org.changes()) == 2
    assert place.count("operations", "failure IS NOT NULL") == 4


POISON = """
    CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF NEW.appointment_id = 'poison' THEN
            {action}
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER poison BEFORE INSERT ON appointment_history
    FOR EACH ROW EXECUTE FUNCTION poison();
"""
HANGS = "PERFORM pg_sleep(60);"
ENDS_THE_SESSION = "PERFORM pg_terminate_backend(pg_backend_pid());"


@pytest.mark.parametrize("action", [HANGS, ENDS_THE_SESSION], ids=["hangs", "ends"])
def test_an_operation_without_a_response_is_given_up_and_delays_no_other(
    place: Place, start_place_worker: StartProgram, action: str
) -> None:
    place.sql.execute(POISON.format(action=action).encode())
    org = place.organization("o5")
    accepted = [
        org.upsert(id, minute, minute + 1) for minute, id in enumerate(["1", "poison", "2"])
    ]
    for number in range(10):
        place.queue(f"o{number}", queued_write("by hand", 600))
    started = time.monotonic()
    start_place_worker(**SHORT)
    until(lambda: place.count("queued_operations", "organization_id <> 'o5'") == 0)
    assert time.monotonic() - started < 10
    until(lambda: place.count("operation_leases", "attempts > 1") == 1)
    assert place.count("operation_leases", "attempts > 0 AND organization_id <> 'o5'") == 0
    assert metadata_of(org.wait(accepted[0])).outcome == pb.CREATED
    # The other attempts would take minutes.
    place.sql.execute("UPDATE operation_leases SET attempts = 10 WHERE organization_id = 'o5'")
    given_up = org.wait(accepted[1])
    failure = refusal_of(given_up.error, grpc.StatusCode.INTERNAL)
    assert failure.reason == "OPERATION_FAILED"
    assert "10 calls" in failure.message
    assert metadata_of(org.wait(accepted[2])).outcome == pb.CREATED
    assert org.listed(filter="error:*") == [accepted[1].name]
    until(place.all_applied)
    assert place.count("operations", "failure IS NOT NULL") == 1
    org.org.check_history()


def test_a_missing_privilege_fails_no_operation(
    place: Place, start_place_worker: StartProgram
) -> None:
    """A privilege is missing for a while, for example during a deployment."""
    org = place.organization("o")
    # It works with the rights of its owner.
    place.sql.execute("ALTER FUNCTION apply_writes OWNER TO appointments_service")
    accepted = [org.upsert(str(number), number, number + 1) for number in range(3)]
    worker = start_place_worker(**SHORT)
    worker.wait_for_event(lambda event: "permission denied" in event.get("exception", ""))
    # Leased again and again, and attempted.
    until(lambda: place.count("operation_leases", "fence > 3") == 1)
    assert place.count("operation_leases", "attempts = 0") == 1
    place.sql.execute("ALTER FUNCTION apply_writes OWNER TO CURRENT_USER")
    for operation in accepted:
        assert metadata_of(org.wait(operation)).outcome == pb.CREATED


def test_locked_organizations_delay_no_others(
    place: Place, start_place_worker: StartProgram
) -> None:
    locked = [place.organization(f"locked{number}") for number in range(6)]
    with ExitStack() as stack:
        for org in locked:
            stack.enter_context(held_lock(place.url, org.id))
        waiting = [org.upsert("a", 0, 1) for org in locked]
        start_place_worker(LOCK_TIMEOUT="0.3", STATEMENT_TIMEOUT="1", OPERATION_LEASE="2")
        until(lambda: place.count("pg_locks", "locktype = 'advisory' AND NOT granted") == 1)
        for number in range(40):
            org = place.organization(f"free{number % 8}")
            started = time.monotonic()
            assert metadata_of(org.wait(org.upsert(str(number), number, number + 1))).HasField(
                "outcome"
            )
            assert time.monotonic() - started < 1
        # Long enough that the wait for each has timed out.
        until(lambda: place.count("operation_leases", "fence > 8") >= len(locked))
        assert place.count("operation_leases", "attempts > 0") == 0
        assert place.count("queued_operations") == len(locked)
    for org, operation in zip(locked, waiting, strict=True):
        assert metadata_of(org.wait(operation)).outcome == pb.CREATED


@pytest.mark.parametrize(("commits", "queued"), [(True, 2), (True, 3), (False, 3)])
def test_a_row_written_by_hand_delays_only_its_organization(
    place: Place, start_place_worker: StartProgram, commits: bool, queued: int
) -> None:
    """It does not take the organization's lock. Only the constraint sees the overlap, and waits."""
    org = place.organization("o")
    free = [place.organization(f"free{number}") for number in range(5)]
    with psycopg.connect(place.url) as by_hand:
        by_hand.execute(
            "INSERT INTO appointments (organization_id, appointment_id, resource_id, start_time,"
            " end_time, title, attributes, created_at, updated_at, updated_at_given, state,"
            " version, revision) VALUES ('o', 'by hand', '', '2030-01-07 08:01Z',"
            " '2030-01-07 08:02Z', '', '{}', now(), now(), false, 'ACTIVE', 1, 1000)"
        )
        operations = [org.upsert(str(minute), minute, minute + 1) for minute in range(queued)]
        others = [each.upsert("a", 0, 1) for each in free]
        start_place_worker(**PATIENT)
        for each, operation in zip(free, others, strict=True):
            assert metadata_of(each.wait(operation)).outcome == pb.CREATED
        assert metadata_of(org.wait(operations[0])).outcome == pb.CREATED
        # Longer than a call of several would; so its check is over, and the constraint waits.
        until(
            lambda: (
                place.count(
                    "pg_stat_activity",
                    "wait_event_type = 'Lock' AND clock_timestamp() - query_start > '0.3s'",
                )
                == 1
            )
        )
        by_hand.commit() if commits else by_hand.rollback()
    second = org.wait(operations[1])
    for operation in operations[2:]:
        assert metadata_of(org.wait(operation)).outcome == pb.CREATED
    if commits:
        failure = refusal_of(second.error, grpc.StatusCode.ALREADY_EXISTS)
        assert failure.reason == "TIME_RANGE_CONFLICT"
        assert [conflict.id for conflict in failure.conflicts] == ["by hand"]
    else:
        assert metadata_of(second).outcome == pb.CREATED
