"""Where rules meet: expired holds, several resources, atomic batches, updates, conditions."""

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from google.protobuf.struct_pb2 import Struct

from tests.api import Organization, Refusal, appointment, at, batch_request, refused, soon
from tests.observing import until
from tests.operations.place import Place
from tests.operations.submissions import Submissions, metadata_of, response_of

Change = pb.HistoryEntry.Change
State = pb.Appointment.State


@pytest.fixture
def submissions(place: Place, organization: str) -> Submissions:
    """An organization of a database without a worker, which would record expired holds."""
    return place.organization(organization)


@pytest.fixture
def org(submissions: Submissions) -> Organization:
    return submissions.org


def expire_together(org: Organization, *holds: tuple[str, float, float, Sequence[str]]) -> None:
    """Hold ranges of resources, and wait until all of the holds have expired."""
    until_then = soon(1.5)
    for id, start, end, (resource, *more) in holds:
        org.upsert(
            id,
            start,
            end,
            resource_id=resource,
            additional_resource_ids=more,
            hold_until=until_then,
        )
    while any(org.get(id).state == State.HELD for id, *_ in holds):
        time.sleep(0.01)


def atomic(org: Organization, *items: pb.Appointment) -> rpc.BatchUpsertAppointmentsRequest:
    request = batch_request(items)
    request.atomic = True
    return request


def written(org: Organization, request: rpc.BatchUpsertAppointmentsRequest) -> list[Any]:
    return list(org.stub.BatchUpsertAppointments(request).results)


def refused_items(
    org: Organization, request: rpc.BatchUpsertAppointmentsRequest
) -> dict[int, tuple[str, list[tuple[str, int]]]]:
    """Return code and conflicts of each refused item: the ids, and their versions."""
    refusal = refused(org.stub.BatchUpsertAppointments, request)
    assert refusal.reason == "BATCH_REFUSED"
    return {
        item.index: (item.code, [(other.id, other.version) for other in item.conflicts])
        for item in refusal.items
    }


def changes(org: Organization) -> list[tuple[str, str, int]]:
    """Return what happened: change, id and version. The history must be consistent."""
    org.check_history()
    return [
        (Change.Name(entry.change), entry.appointment.id, entry.appointment.version)
        for entry in org.changes()
    ]


# Expired holds


def test_a_write_records_each_hold_in_its_way_once_and_by_id(org: Organization) -> None:
    expire_together(
        org,
        ("z", 0, 10, ["r", "s"]),
        ("y", 5, 20, ["t"]),
        ("x", 30, 40, ["r"]),
        ("w", 15, 25, ["s", "u"]),
    )
    created = org.upsert("a", 0, 20, resource_id="s", additional_resource_ids=["r", "t"])
    assert (created.appointment.version, created.appointment.revision) == (1, 8)
    org.upsert("x", 60, 70, resource_id="r")
    assert changes(org) == [
        ("CREATED", "z", 1),
        ("CREATED", "y", 1),
        ("CREATED", "x", 1),
        ("CREATED", "w", 1),
        ("EXPIRED", "w", 2),
        ("EXPIRED", "y", 2),
        ("EXPIRED", "z", 2),
        ("CREATED", "a", 1),
        ("EXPIRED", "x", 2),
        ("UPDATED", "x", 3),
    ]


def test_a_refused_write_records_no_expiry(org: Organization) -> None:
    org.upsert("firm", 20, 30, resource_id="s")
    expire_together(org, ("held", 0, 20, ["r"]))
    refusal = org.refused("a", 0, 30, resource_id="r", additional_resource_ids=["s"])
    assert [(other.id, list(other.resource_ids)) for other in refusal.conflicts] == [
        ("firm", ["s"])
    ]
    assert refusal.organization_revision == 2
    assert len(org.changes()) == 2


def test_validation_counts_the_expiry_and_records_nothing(org: Organization) -> None:
    expire_together(org, ("a", 0, 10, ["r"]), ("b", 10, 20, ["r"]))
    moved = org.upsert("a", 0, 20, resource_id="r", validate_only=True)
    assert (moved.appointment.version, moved.appointment.revision) == (3, 0)
    assert org.cancel("b", validate_only=True).appointment.version == 3
    assert len(org.changes()) == 2
    assert org.upsert("a", 0, 20, resource_id="r").appointment.version == 3


def test_a_cancelled_hold_that_had_expired_did_both(org: Organization) -> None:
    expire_together(org, ("a", 0, 10, ["r", "s"]))
    expired = org.get("a")
    cancelled = org.cancel("a", etag=expired.etag)
    assert cancelled.appointment.state == State.CANCELLED
    assert cancelled.appointment.hold_until == expired.hold_until
    assert changes(org) == [("CREATED", "a", 1), ("EXPIRED", "a", 2), ("CANCELLED", "a", 3)]
    assert org.listed(resource_id="s", include_cancelled=False) == {}


def test_the_etag_of_a_held_one_does_not_match_when_it_has_expired(org: Organization) -> None:
    held = org.upsert("a", 0, 10, hold_until=soon(1.5)).appointment
    until(lambda: org.get("a").state == State.EXPIRED)
    assert org.refused("a", 0, 10, etag=held.etag).reason == "ETAG_MISMATCH"
    assert refused(org.confirm, "a", etag=held.etag).reason == "ETAG_MISMATCH"
    assert org.upsert("a", 0, 10, etag=org.get("a").etag).outcome == pb.UPDATED


def test_a_repeated_write_is_answered_as_at_first_after_the_expiry(org: Organization) -> None:
    held = {"hold_until": soon(1.5), "idempotency_key": "k1"}
    first = org.upsert("a", 0, 10, **held)
    updated = org.update("a", {"title": "x"}, idempotency_key="k2")
    until(lambda: org.get("a").state == State.EXPIRED)
    # Too late for a new hold, but not for the same one again.
    assert org.upsert("a", 0, 10, **held) == first
    assert org.update("a", {"title": "x"}, idempotency_key="k2") == updated
    org.upsert("b", 0, 10)
    assert org.upsert("a", 0, 10, **held) == first
    assert org.update("a", {"title": "x"}, idempotency_key="k2") == updated


def test_a_late_write_of_an_expired_hold_is_answered_as_at_first(
    place: Place, submissions: Submissions, org: Organization
) -> None:
    org.upsert("a", 0, 10, updated_at=at(5), hold_until=soon(1.5))
    until(lambda: org.get("a").state == State.EXPIRED)
    late = {"updated_at": at(4), "idempotency_key": "k"}
    first = org.upsert("a", 0, 10, **late)
    assert (first.outcome, first.appointment.state) == (pb.STALE, State.EXPIRED)
    assert first.appointment == org.get("a")
    assert org.upsert("a", 0, 10, **late) == first
    operations = [submissions.upsert("a", 0, 10, **late), submissions.cancel("a", updated_at=at(3))]
    apply_queued(place)
    for operation in operations:
        done = submissions.wait(operation)
        assert metadata_of(done).outcome == pb.STALE
        assert response_of(done) == first.appointment
    assert changes(org) == [("CREATED", "a", 1)]


def apply_queued(place: Place) -> None:
    """Apply the queued operations as a worker does, which would record expired holds too."""
    leases = [
        {"organization_id": organization, "fence": fence, "only_one": False}
        for organization, fence in place.sql.execute(
            "SELECT organization_id, fence FROM lease_operations('', 1, '1 minute')"
        )
    ]
    place.sql.execute("SELECT apply_queued_operations(%s, 10, '1 minute')", (json.dumps(leases),))


def test_time_does_not_go_back_with_the_clock_of_the_database(
    place: Place, org: Organization
) -> None:
    """A clock that was ahead: what had expired by then stays expired, in reads and writes."""
    org.upsert("a", 0, 10, hold_until=soon(60))
    org.upsert("b", 10, 20, hold_until=soon(60))
    place.sql.execute("UPDATE organizations SET recorded_at = now() + interval '1 hour'")
    assert org.get("a").state == State.EXPIRED
    assert refused(org.confirm, "a").reason == "HOLD_EXPIRED"
    assert org.refused("c", 0, 10, hold_until=soon(60)).reason == "INVALID_FIELD"
    org.upsert("c", 0, 20)
    assert [entry[:2] for entry in changes(org)][2:] == [
        ("EXPIRED", "a"),
        ("EXPIRED", "b"),
        ("CREATED", "c"),
    ]


def test_as_of_a_time_to_come_is_as_now(org: Organization) -> None:
    org.upsert("a", 0, 10, hold_until=soon(60))
    later = soon(3600)
    assert org.get("a", as_of_time=later).state == State.HELD
    assert list(org.listed(as_of_time=later, include_cancelled=False)) == ["a"]


# Atomic batches


def test_an_expired_hold_is_moved_in_an_atomic_batch_by_its_etag(org: Organization) -> None:
    org.upsert("b", 20, 30)
    expire_together(
        org, ("a", 0, 10, [""]), ("d", 35, 40, [""]), ("c", 40, 50, [""]), ("e", 50, 60, [""])
    )
    request = atomic(org, appointment(org.id, "b", 0, 10), appointment(org.id, "a", 20, 45))
    request.requests[1].etag = org.get("a").etag
    results = written(org, request)
    assert [result.outcome for result in results] == [pb.UPDATED, pb.UPDATED]
    assert [result.appointment.version for result in results] == [2, 3]
    # The others in the way come first.
    assert [change for change in changes(org) if change[0] != "CREATED"] == [
        ("EXPIRED", "c", 2),
        ("EXPIRED", "d", 2),
        ("UPDATED", "b", 2),
        ("EXPIRED", "a", 2),
        ("UPDATED", "a", 3),
    ]


def test_a_late_item_of_an_atomic_batch_is_not_in_the_way_when_expired(org: Organization) -> None:
    org.upsert("a", 0, 10, updated_at=at(5), hold_until=soon(1.5))
    until(lambda: org.get("a").state == State.EXPIRED)
    late = appointment(org.id, "a", 0, 10, updated_at=at(4))
    request = atomic(org, appointment(org.id, "b", 0, 10), late)
    request.validate_only = True
    validated = written(org, request)
    assert [result.outcome for result in validated] == [pb.CREATED, pb.STALE]
    assert validated[1].appointment == org.get("a")
    request.validate_only = False
    response, call = org.stub.BatchUpsertAppointments.with_call(request)
    assert [result.outcome for result in response.results] == [pb.CREATED, pb.STALE]
    assert response.results[1] == validated[1]
    assert dict(call.trailing_metadata())["organization-revision"] == "3"
    assert changes(org) == [("CREATED", "a", 1), ("CREATED", "b", 1), ("EXPIRED", "a", 2)]


def test_a_refused_item_without_an_appointment_hides_no_conflict(org: Organization) -> None:
    org.upsert("outside", 0, 10)
    org.upsert("k", 20, 30, idempotency_key="k")
    request = atomic(
        org,
        appointment(org.id, "etag", 40, 50),
        appointment(org.id, "taken", 5, 15),
        appointment(org.id, "key", 60, 70),
    )
    request.requests[0].etag = "1"
    request.requests[2].idempotency_key = "k"
    assert refused_items(org, request) == {
        0: ("ETAG_MISMATCH", []),
        1: ("TIME_RANGE_CONFLICT", [("outside", 1)]),
        2: ("IDEMPOTENCY_KEY_REUSED", []),
    }


def test_a_conflict_with_a_repeated_item_has_its_version_of_now(org: Organization) -> None:
    org.upsert("a", 0, 10, idempotency_key="k")
    org.upsert("a", 0, 20)
    request = atomic(org, appointment(org.id, "a", 0, 10), appointment(org.id, "b", 15, 30))
    request.requests[0].idempotency_key = "k"
    assert refused_items(org, request) == {1: ("TIME_RANGE_CONFLICT", [("a", 2)])}


def test_shared_resources_are_exchanged_in_an_atomic_batch(org: Organization) -> None:
    org.upsert("a", 0, 10, resource_id="r", additional_resource_ids=["s"])
    org.upsert("b", 0, 10, resource_id="t", additional_resource_ids=["u"])
    results = written(
        org,
        atomic(
            org,
            appointment(org.id, "a", 0, 10, resource_id="u", additional_resource_ids=["s"]),
            appointment(org.id, "b", 5, 20, resource_id="r"),
        ),
    )
    assert [result.outcome for result in results] == [pb.UPDATED, pb.UPDATED]
    assert org.upsert("c", 0, 10, resource_id="t").outcome == pb.CREATED
    [conflict] = org.refused("d", 0, 10, resource_id="u").conflicts
    assert (conflict.id, conflict.version) == ("a", 2)
    org.check_history()


# Conflicts


def test_conflicts_are_ordered_by_start_then_id_and_limited(org: Organization) -> None:
    for number in range(11):
        org.upsert(f"b{number:02}", number, number + 1, resource_id="r")
        org.upsert(f"a{number:02}", number, number + 1, resource_id="s")
    refusal = org.refused("x", 0, 60, resource_id="s", additional_resource_ids=["t", "r"])
    expected = [f"{letter}{number:02}" for number in range(11) for letter in "ab"]
    assert [other.id for other in refusal.conflicts] == expected[:20]
    assert refusal.more_conflicts
    assert {tuple(other.resource_ids) for other in refusal.conflicts} == {("s",), ("r",)}
    assert not org.refused(
        "x", 1, 11, resource_id="s", additional_resource_ids=["r"]
    ).more_conflicts


def test_an_update_that_hand_written_sql_prevents_names_what_is_in_the_way(
    place: Place, org: Organization
) -> None:
    """The row is not visible to the check, so the constraint refuses the update."""
    org.upsert("a", 0, 10, resource_id="r", additional_resource_ids=["s"])
    assert (
        conflicts_of(place, org, {"id": "a", "fields": ["start", "end"], "resource_id": ""}) == []
    )
    org.upsert("b", 20, 30, resource_id="s")
    moved = {
        "id": "a",
        "fields": ["start", "end"],
        "resource_id": "",
        "start_time": at(20).ToJsonString(),
        "end_time": at(30).ToJsonString(),
    }
    assert conflicts_of(place, org, moved) == ["b"]
    # The times are not named, so those that are stored count.
    assert conflicts_of(place, org, {**moved, "fields": ["title"]}) == []
    assert conflicts_of(place, org, {**moved, "id": "c", "resource_id": "s"}) == ["b"]


def conflicts_of(place: Place, org: Organization, write: dict[str, Any]) -> list[str]:
    [(found,)] = place.sql.execute("SELECT conflicts_of_write(%s, %s)", (org.id, json.dumps(write)))
    return [conflict["id"] for conflict in found or ()]


# Updates


def test_an_update_that_creates_takes_what_its_mask_does_not_name(org: Organization) -> None:
    attributes, patch = Struct(), Struct()
    attributes.update({"a": 1, "b": 2})
    patch.update({"b": None, "c": 3})
    fields = {
        "start": at(0),
        "end": at(10),
        "resource_id": "r",
        "title": "x",
        "attributes": attributes,
        "created_at": at(1),
        "updated_at": at(2),
        "hold_until": soon(60),
    }
    refusal: Refusal = refused(org.update, "a", fields, ["start", "end"])
    assert refusal.reason == "APPOINTMENT_NOT_FOUND"
    created = org.update(
        "a", fields, ["start", "end"], allow_missing=True, attributes_patch=patch
    ).appointment
    assert (created.state, created.hold_until) == (State.HELD, fields["hold_until"])
    assert (created.created_at, created.updated_at) == (at(1), at(2))
    assert (created.resource_id, created.title) == ("r", "x")
    assert dict(created.attributes) == {"a": 1, "c": 3}
    # Now that it exists, they are ignored, though they would be refused or stale.
    fields |= {"hold_until": soon(-60), "updated_at": at(0), "end": at(20), "title": "y"}
    updated = org.update("a", fields, ["start", "end"], allow_missing=True).appointment
    assert (updated.end, updated.title, updated.version) == (at(20), "x", 2)
    assert (updated.updated_at, updated.hold_until) == (at(2), created.hold_until)


def test_the_stored_resources_count_in_an_update(org: Organization) -> None:
    org.upsert("a", 0, 10, resource_id="r", additional_resource_ids=["s"])
    refusal = refused(org.update, "a", {"resource_id": "s"}, ["resource_id"])
    assert set(refusal.fields) == {"appointment.additional_resource_ids"}
    both = {"resource_id": "s", "additional_resource_ids": ["r"]}
    assert org.update("a", both).outcome == pb.UPDATED
    cleared = org.update("a", {}, ["additional_resource_ids"]).appointment
    assert (cleared.resource_id, list(cleared.additional_resource_ids)) == ("s", [])
    assert org.upsert("b", 0, 10, resource_id="r").outcome == pb.CREATED


def test_a_range_with_the_stored_time_is_at_most_so_long(org: Organization) -> None:
    day = timedelta(days=1) / timedelta(minutes=1)
    org.upsert("a", 0, 10)
    refusal = refused(org.update, "a", {"end": at(3653 * day + 1)}, ["end"])
    assert set(refusal.fields) == {"appointment.end"}
    assert org.update("a", {"end": at(3653 * day)}, ["end"]).outcome == pb.UPDATED
