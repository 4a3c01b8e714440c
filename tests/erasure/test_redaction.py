"""What a redaction erases, what stays, and what may come afterwards."""

import json
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc

from tests.api import TIMEOUT, Organization, appointment, at, batch_request, refused, soon
from tests.observing import held_lock, until
from tests.rest_client import Client
from tests.writes.requests import struct

Kind = pb.HistoryEntry


def by(actor: str) -> tuple[tuple[str, str], ...]:
    return (("x-actor", actor),)


def written_by(org: Organization, actor: str, id: str, start: float, **fields: Any) -> None:
    key = fields.pop("idempotency_key", "")
    request = rpc.UpsertAppointmentRequest(
        appointment=appointment(org.id, id, start, start + 30, **fields), idempotency_key=key
    )
    org.stub.UpsertAppointment(request, timeout=TIMEOUT, metadata=by(actor))


def change(entry: pb.HistoryEntry) -> str:
    return Kind.Change.Name(entry.change)


def texts(entries: Sequence[pb.HistoryEntry]) -> set[object]:
    """Return everything in entries that a redaction erases, but redactions' own keys."""
    return {
        text
        for entry in entries
        for text in (
            entry.appointment.title,
            str(entry.appointment.attributes),
            entry.actor,
            "" if entry.change == Kind.REDACTED else entry.idempotency_key,
        )
        if text
    }


def with_history(org: Organization) -> list[pb.HistoryEntry]:
    """Write an appointment and another one; return the history of the first."""
    written_by(org, "Eve", "a", 0, title="Anna", attributes={"phone": 1}, idempotency_key="k1")
    written_by(org, "Eve", "b", 60, title="Other", attributes={"x": 1}, idempotency_key="k2")
    written_by(org, "Mallory", "a", 30, title="Anna", resource_id="r", created_at=at(0))
    return list(org.history("a").entries)


def test_it_empties_the_text_and_keeps_the_proof(org: Organization) -> None:
    before = with_history(org)
    response = org.redact("a")
    assert response.outcome == pb.REDACTED
    stored = response.appointment
    assert (stored.title, stored.attributes, stored.version, stored.revision) == (
        "",
        struct({}),
        3,
        4,
    )
    assert stored == org.get("a")
    after = list(org.history("a").entries)
    assert [change(entry) for entry in after] == ["CREATED", "UPDATED", "REDACTED"]
    assert after[2].appointment == stored
    assert not texts(after)
    # All the rest is as it was.
    for entry in before:
        entry.appointment.title = entry.actor = entry.idempotency_key = ""
        entry.appointment.attributes.Clear()
    assert after[:2] == before
    latest = before[1].appointment
    latest.version, latest.revision, latest.etag = 3, 4, stored.etag
    assert stored == latest
    org.check_history()


def test_no_other_appointment_is_touched(org: Organization) -> None:
    with_history(org)
    before = org.get("b"), list(org.history("b").entries)
    org.redact("a")
    assert (org.get("b"), list(org.history("b").entries)) == before
    assert before[1][0].actor == "Eve"


def test_the_past_shows_no_text_either(org: Organization, client: Client) -> None:
    with_history(org)
    etag = client.call("GET", "/appointments", asOfRevision=1).headers["ETag"]
    org.redact("a")
    assert org.get("a", as_of_revision=1).title == ""
    assert [item.title for item in org.listed(as_of_revision=2).values()] == ["", "Other"]
    # A list of the past is not answered as unchanged.
    again = client.call("GET", "/appointments", asOfRevision=1, If_None_Match=etag)
    assert again.status == 200


@pytest.mark.parametrize("state", ["ACTIVE", "HELD", "EXPIRED", "CANCELLED"])
def test_the_state_and_what_is_occupied_stay(org: Organization, state: str) -> None:
    resources = {"resource_id": "r", "additional_resource_ids": ["s", "t"]}
    until_time = {"ACTIVE": None, "CANCELLED": None, "HELD": 3600, "EXPIRED": 0.2}[state]
    hold = {} if until_time is None else {"hold_until": soon(until_time)}
    org.upsert("a", 0, 30, title="Anna", **resources, **hold)
    if state == "CANCELLED":
        org.cancel("a")
    until(lambda: org.get("a").state == pb.Appointment.State.Value(state))
    redacted = org.redact("a").appointment
    assert pb.Appointment.State.Name(redacted.state) == state
    assert list(redacted.additional_resource_ids) == ["s", "t"]
    assert redacted.HasField("hold_until") == (until_time is not None)
    assert not texts(org.changes())
    if state in ("ACTIVE", "HELD"):
        assert org.refused("b", 10, 20, resource_id="t").reason == "TIME_RANGE_CONFLICT"
    else:
        assert org.upsert("b", 10, 20, resource_id="t").outcome == pb.CREATED
    org.check_history()


def test_again_is_unchanged_until_there_is_something_to_erase(org: Organization) -> None:
    with_history(org)
    org.redact("a")
    assert org.redact("a").outcome == pb.UNCHANGED
    assert org.redact("a", idempotency_key="mine").outcome == pb.UNCHANGED
    assert len(org.changes()) == 4
    # A cancel leaves an actor behind.
    request = rpc.CancelAppointmentRequest(organization_id=org.id, id="a")
    org.stub.CancelAppointment(request, timeout=TIMEOUT, metadata=by("Eve"))
    assert org.redact("a").outcome == pb.REDACTED
    org.upsert("a", 0, 30, title="Anna")
    assert org.redact("a").outcome == pb.REDACTED
    assert org.redact("a").outcome == pb.UNCHANGED
    assert not texts(org.history("a").entries)
    org.check_history()


def test_what_was_never_there_is_not_redacted(org: Organization) -> None:
    org.upsert("a", 0, 30)
    assert org.redact("a").outcome == pb.UNCHANGED
    assert refused(org.redact, "b").reason == "APPOINTMENT_NOT_FOUND"
    assert len(org.changes()) == 1


def test_it_takes_an_etag_and_can_be_validated_only(org: Organization) -> None:
    org.upsert("a", 0, 30, title="Anna")
    assert refused(org.redact, "a", etag="other").reason == "ETAG_MISMATCH"
    found = org.redact("a", validate_only=True, etag=org.get("a").etag)
    assert (found.outcome, found.appointment.title, found.appointment.version) == (
        pb.REDACTED,
        "",
        2,
    )
    assert (found.appointment.etag, found.appointment.revision) == ("", 0)
    assert org.get("a").title == "Anna"
    assert org.redact("a", etag=org.get("a").etag).outcome == pb.REDACTED
    assert org.redact("a", validate_only=True).outcome == pb.UNCHANGED


def test_its_own_key_makes_it_repeatable(org: Organization) -> None:
    org.upsert("a", 0, 30, title="Anna")
    first = org.redact("a", idempotency_key="erase")
    org.upsert("a", 0, 30, title="Ben")
    again = org.redact("a", idempotency_key="erase")
    assert (again.outcome, again.appointment) == (pb.REDACTED, first.appointment)
    assert org.get("a").title == "Ben"
    assert org.history("a").entries[1].idempotency_key == "erase"
    other = refused(org.redact, "b", idempotency_key="erase")
    assert other.reason == "IDEMPOTENCY_KEY_REUSED"
    # Another redaction leaves it as it is.
    org.redact("a")
    assert org.redact("a", idempotency_key="erase").appointment == first.appointment


def test_a_late_repetition_with_a_key_brings_nothing_back(org: Organization) -> None:
    created = {"title": "Anna", "idempotency_key": "create"}
    org.upsert("a", 0, 30, **created)
    org.upsert("a", 0, 30, title="Anna", idempotency_key="unchanged")
    org.redact("a")
    for key in ("create", "unchanged"):
        late = org.refused("a", 0, 30, title="Anna", idempotency_key=key)
        assert late.reason == "IDEMPOTENCY_KEY_REUSED"
        assert "redacted" in late.message
    assert org.get("a").title == ""
    assert org.upsert("a", 0, 30, title="Anna", idempotency_key="new").outcome == pb.UPDATED


def test_a_late_repetition_with_its_time_brings_nothing_back(org: Organization) -> None:
    late = {"title": "Anna", "updated_at": at(5)}
    org.upsert("a", 0, 30, **late)
    org.redact("a")
    assert org.upsert("a", 0, 30, **late).outcome == pb.STALE
    assert org.upsert("a", 0, 30, title="Anna", updated_at=at(4)).outcome == pb.STALE
    update = org.update("a", {"title": "Anna", "updated_at": at(5)})
    assert update.outcome == pb.STALE
    # Not even once it was written without a time.
    org.upsert("a", 30, 60)
    assert org.upsert("a", 0, 30, **late).outcome == pb.STALE
    assert org.get("a").title == ""
    assert org.upsert("a", 0, 30, title="Ben", updated_at=at(6)).outcome == pb.UPDATED
    assert org.upsert("a", 0, 30, title="Ben", updated_at=at(6)).outcome == pb.UNCHANGED
    org.check_history()


def test_afterwards_it_is_written_as_any_other(org: Organization) -> None:
    org.upsert("a", 0, 30, title="Anna", attributes={"x": 1})
    org.redact("a")
    assert org.update("a", {"title": "Ben"}).appointment.title == "Ben"
    assert org.cancel("a").outcome == pb.CANCELLED
    assert org.upsert("a", 0, 30).outcome == pb.UPDATED
    assert [change(entry) for entry in org.history("a").entries] == [
        "CREATED",
        "REDACTED",
        "UPDATED",
        "CANCELLED",
        "UPDATED",
    ]
    org.check_history()


def test_the_rest_route_is_that_of_any_write(client: Client) -> None:
    client.upsert("a", title="Anna", attributes={"x": 1})
    assert client.call("POST", "/appointments/a:redact", If_Match='"9"').status == 412
    dry = client.redact("a", validateOnly="true")
    assert (dry.headers["Appointment-Outcome"], "ETag" in dry.headers) == ("REDACTED", False)
    answer = client.call("POST", "/appointments/a:redact", Idempotency_Key='"k"')
    assert answer.status == 200
    assert answer.headers["Appointment-Outcome"] == "REDACTED"
    assert answer.headers["ETag"] == '"2"'
    assert (answer.json["title"], answer.json["attributes"]) == ("", {})
    assert client.redact("a").headers["Appointment-Outcome"] == "UNCHANGED"
    assert client.redact("b").status == 404


def test_writes_that_wait_with_it_are_decided_in_their_order(
    org: Organization, database_url: str
) -> None:
    """Writes of one batch: some before the redaction, some after it."""
    org.upsert("a", 0, 30, title="Anna")
    calls: list[Callable[[], Any]] = [
        lambda: org.upsert("a", 0, 30, title="Before"),
        lambda: org.redact("a"),
        lambda: org.upsert("a", 0, 30, title="After"),
        lambda: org.upsert("b", 60, 90, title="Other"),
    ]
    with ThreadPoolExecutor(len(calls)) as pool, held_lock(database_url, org.id) as lock:
        # The first call waits for the lock, and the others for the first.
        waiting = [pool.submit(lambda: org.upsert("c", 90, 95))]
        lock.wait_for(1)
        waiting += [pool.submit(call) for call in calls]
        lock.release()
        assert {pb.Outcome.Name(done.result().outcome) for done in waiting} <= {
            "CREATED",
            "UPDATED",
            "REDACTED",
        }
    entries = list(org.history("a").entries)
    kinds = [change(entry) for entry in entries]
    erased = entries[: kinds.index("REDACTED") + 1]
    assert not texts(erased)
    org.check_history()


def test_of_concurrent_upserts_only_those_after_it_are_left(org: Organization) -> None:
    org.upsert("a", 0, 30, title="Anna")
    with ThreadPoolExecutor(8) as pool:

        def write(number: int) -> None:
            if number % 5 == 4:
                org.redact("a")
            else:
                org.upsert("a", 0, 30, title=f"Anna {number}", idempotency_key=f"{number}")

        list(pool.map(write, range(40)))
    entries = list(org.history("a").entries)
    kinds = [change(entry) for entry in entries]
    last = len(kinds) - kinds[::-1].index("REDACTED")
    assert not texts(entries[:last])
    assert all(entry.appointment.title for entry in entries[last:])
    org.check_history()


@pytest.mark.parametrize("is_queued", [True, False], ids=["given up", "refused"])
def test_it_waits_for_an_operation_whose_failure_is_being_stored(
    database_url: str, org: Organization, is_queued: bool
) -> None:
    """A failed operation keeps its write, with the text."""
    org.upsert("a", 0, 30, title="Anna")
    id, write = str(uuid.uuid4()), {"kind": "UPSERT", "id": "a", "title": "Anna"}
    accepted = {"organization_id": org.id, "operation_id": id, "accepted_at": "2026-01-01T00:00Z"}
    with (
        psycopg.connect(database_url, autocommit=True) as other,
        psycopg.connect(database_url) as worker,
        ThreadPoolExecutor(1) as pool,
    ):
        if is_queued:
            queued = json.dumps([{**accepted, "write": write}])
            other.execute("SELECT queue_operations(%s::json)", [queued])
            other.execute(
                "INSERT INTO operation_leases (organization_id, fence, leased_until, attempts)"
                " VALUES (%s, 1, 'infinity', 3)",
                [org.id],
            )
            worker.execute("SELECT give_up_operation(%s::text, 1, 'no response')", [org.id])
        else:
            worker.execute(
                "SELECT refuse_operation(%s::text, %s::uuid, %s::timestamptz, %s::json, 'invalid')",
                [*accepted.values(), json.dumps(write)],
            )

        def waits() -> bool:
            [(waiting,)] = other.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))",
                [worker.info.backend_pid],
            ).fetchall()
            return bool(waiting)

        redaction = pool.submit(org.redact, "a")
        until(lambda: redaction.done() or waits())
        worker.commit()
        redaction.result()
        stored = other.execute(
            "SELECT failure, write ->> 'title' FROM operations WHERE operation_id = %s", [id]
        ).fetchall()
    assert stored == [("the appointment was redacted since", "")]


def test_a_batch_writes_redacted_appointments(org: Organization) -> None:
    org.upsert("a", 0, 30, title="Anna")
    org.redact("a")
    wanted = [
        appointment(org.id, "a", 0, 30, title="Ben"),
        appointment(org.id, "b", 30, 60, title="Carl"),
    ]
    for atomic in (False, True):
        request = batch_request(wanted)
        request.atomic = atomic
        results = org.stub.BatchUpsertAppointments(request, timeout=TIMEOUT).results
        assert [result.appointment.title for result in results] == ["Ben", "Carl"]
        org.redact("b")
    org.check_history()


def test_the_services_role_changes_history_by_redaction_alone(
    org: Organization, database_url: str
) -> None:
    org.upsert("a", 0, 30, title="Anna")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET ROLE appointments_service")
        for statement in (
            "UPDATE appointment_history SET title = ''",
            "DELETE FROM appointment_history",
            "SELECT erase_appointment('o', 'a', now(), NULL)",
            "INSERT INTO erased_keys VALUES ('o', '')",
            "SELECT * FROM erased_keys",
            "DELETE FROM organizations",
            "INSERT INTO purged_organizations VALUES ('o', now())",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        connection.execute(
            "SELECT apply_writes(%s, %s)",
            (org.id, '[{"kind": "REDACT", "id": "a", "actor": "", "validate_only": false}]'),
        )
    assert org.history("a").entries[0].appointment.title == ""
