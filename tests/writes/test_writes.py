"""The rules of writes, in the order in which they are applied."""

import uuid
from typing import Any

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from tests.api import MORNING, Organization, appointment, at, refusal


def test_a_new_id_is_created_with_version_revision_and_etag(org: Organization) -> None:
    response = org.upsert("a", 0, 30, title="Haircut", resource_id="chair 1")
    stored = response.appointment
    assert response.outcome == pb.CREATED
    assert (stored.version, stored.revision, stored.state) == (1, 1, pb.Appointment.ACTIVE)
    assert stored.etag
    assert stored.created_at == stored.updated_at
    assert org.get("a") == stored


def test_an_update_replaces_the_whole_content_and_keeps_created_at(org: Organization) -> None:
    first = org.upsert("a", 0, 30, title="Haircut", attributes={"phone": "1"}).appointment
    response = org.upsert("a", 60, 90)
    stored = response.appointment
    assert response.outcome == pb.UPDATED
    assert (stored.title, dict(stored.attributes)) == ("", {})
    assert (stored.version, stored.revision) == (2, 2)
    assert stored.created_at == first.created_at
    assert stored.updated_at.ToNanoseconds() > first.updated_at.ToNanoseconds()
    assert stored.etag != first.etag


def test_the_same_content_again_is_unchanged_and_writes_nothing(org: Organization) -> None:
    first = org.upsert("a", 0, 30, title="x", attributes={"b": [1, 2], "a": None}, updated_at=at(5))
    again = org.upsert("a", 0, 30, title="x", attributes={"a": None, "b": [1, 2]}, updated_at=at(5))
    without_times = org.upsert("a", 0, 30, title="x", attributes={"b": [1, 2], "a": None})
    assert again.outcome == without_times.outcome == pb.UNCHANGED
    assert again.appointment == without_times.appointment == first.appointment
    assert len(org.changes()) == 1


def test_a_given_created_at_that_differs_is_an_update(org: Organization) -> None:
    org.upsert("a", 0, 30, created_at=at(1))
    assert org.upsert("a", 0, 30, created_at=at(1)).outcome == pb.UNCHANGED
    assert org.upsert("a", 0, 30, created_at=at(2)).outcome == pb.UPDATED


def test_an_absent_id_is_made_as_uuid_7(org: Organization) -> None:
    first = org.upsert(None, 0, 30).appointment
    second = org.upsert(None, 30, 60).appointment
    assert uuid.UUID(first.id).version == uuid.UUID(second.id).version == 7
    assert first.id != second.id


def test_an_absent_organization_is_the_default_one(stub: AppointmentServiceStub) -> None:
    resource = str(uuid.uuid4())
    request = rpc.UpsertAppointmentRequest(
        appointment=pb.Appointment(start=at(0), end=at(1), resource_id=resource)
    )
    assert stub.UpsertAppointment(request).appointment.organization_id == "default"


def test_touching_ranges_do_not_overlap(org: Organization) -> None:
    org.upsert("a", 30, 60)
    assert org.upsert("before", 0, 30).outcome == pb.CREATED
    assert org.upsert("after", 60, 90).outcome == pb.CREATED


@pytest.mark.parametrize(
    ("start", "end"),
    [(30, 60), (0, 31), (59, 90), (40, 50), (0, 90), (30, 40), (50, 60), (59.99, 60)],
)
def test_overlap_is_refused_and_leaves_nothing(org: Organization, start: float, end: float) -> None:
    taken = org.upsert("a", 30, 60).appointment
    refused = org.refused("b", start, end)
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "TIME_RANGE_CONFLICT",
    )
    [conflict] = refused.conflicts
    assert (conflict.id, conflict.start, conflict.end, conflict.version) == (
        "a",
        taken.start,
        taken.end,
        1,
    )
    assert refused.organization_revision == 1
    assert set(org.listed()) == {"a"}
    assert len(org.changes()) == 1


def test_other_resources_and_organizations_do_not_conflict(
    org: Organization, stub: AppointmentServiceStub
) -> None:
    org.upsert("a", 0, 30, resource_id="room 1")
    assert org.upsert("b", 0, 30, resource_id="room 2").outcome == pb.CREATED
    assert org.upsert("c", 0, 30).outcome == pb.CREATED
    assert Organization(stub, f"{org.id}-2").upsert("a", 0, 30).outcome == pb.CREATED


def test_an_update_that_moves_onto_another_is_refused_but_not_onto_itself(
    org: Organization,
) -> None:
    org.upsert("a", 0, 30)
    org.upsert("b", 30, 60)
    assert [c.id for c in org.refused("a", 10, 40).conflicts] == ["b"]
    assert org.upsert("a", 0, 20).outcome == pb.UPDATED
    assert org.upsert("a", 5, 30).outcome == pb.UPDATED


def test_the_first_20_conflicts_are_listed_by_start(org: Organization) -> None:
    for number in range(25):
        org.upsert(f"{number:02}", number, number + 1)
    refused = org.refused("long", 2.5, 100)
    assert [conflict.id for conflict in refused.conflicts] == [f"{n:02}" for n in range(2, 22)]
    assert refused.more_conflicts
    exactly = org.refused("long", 2.5, 21.5)
    assert len(exactly.conflicts) == 20
    assert not exactly.more_conflicts


def test_a_cancel_frees_the_range_and_keeps_the_rest(org: Organization) -> None:
    stored = org.upsert("a", 0, 30, title="x", updated_at=at(5)).appointment
    response = org.cancel("a")
    cancelled = response.appointment
    assert response.outcome == pb.CANCELLED
    assert cancelled.state == pb.Appointment.CANCELLED
    assert (cancelled.version, cancelled.revision) == (2, 2)
    assert cancelled.etag != stored.etag
    for name in ("start", "end", "title", "attributes", "created_at", "updated_at"):
        assert getattr(cancelled, name) == getattr(stored, name)
    assert org.upsert("b", 0, 30).outcome == pb.CREATED


def test_a_second_cancel_is_unchanged(org: Organization) -> None:
    org.upsert("a", 0, 30)
    first = org.cancel("a")
    again = org.cancel("a")
    assert again.outcome == pb.UNCHANGED
    assert again.appointment == first.appointment
    assert len(org.changes()) == 2


def test_a_cancel_of_nothing_is_not_found(org: Organization) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        org.cancel("a")
    refused = refusal(caught.value)
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "APPOINTMENT_NOT_FOUND",
    )


def test_an_upsert_brings_a_cancelled_appointment_back_unless_the_range_is_taken(
    org: Organization,
) -> None:
    org.upsert("a", 0, 30)
    org.cancel("a")
    org.upsert("b", 0, 30)
    assert org.refused("a", 0, 30).reason == "TIME_RANGE_CONFLICT"
    org.cancel("b")
    response = org.upsert("a", 0, 30)
    assert response.outcome == pb.UPDATED
    assert response.appointment.state == pb.Appointment.ACTIVE
    assert response.appointment.version == 3


def test_an_older_updated_at_is_stale_and_changes_nothing(org: Organization) -> None:
    stored = org.upsert("a", 0, 30, updated_at=at(10)).appointment
    response = org.upsert("a", 60, 90, updated_at=at(9))
    assert response.outcome == pb.STALE
    assert response.appointment == stored
    assert org.upsert("a", 60, 90, updated_at=at(10)).outcome == pb.UPDATED


def test_an_equal_updated_at_is_stale_once_it_was_cancelled(org: Organization) -> None:
    org.upsert("a", 0, 30, updated_at=at(10))
    org.cancel("a")
    assert org.upsert("a", 0, 30, updated_at=at(10)).outcome == pb.STALE
    assert org.upsert("a", 0, 30, updated_at=at(11)).outcome == pb.UPDATED


def test_a_stale_write_is_stale_before_it_is_a_conflict(org: Organization) -> None:
    org.upsert("a", 0, 30, updated_at=at(10))
    org.upsert("b", 60, 90)
    assert org.upsert("a", 60, 90, updated_at=at(9)).outcome == pb.STALE


def test_without_a_given_updated_at_nothing_is_stale(org: Organization) -> None:
    org.upsert("a", 0, 30)  # stored with the time of the commit, which guards nothing
    assert org.upsert("a", 0, 40, updated_at=Timestamp(seconds=1)).outcome == pb.UPDATED
    assert org.upsert("a", 0, 50).outcome == pb.UPDATED
    assert org.upsert("a", 0, 30, updated_at=Timestamp(seconds=0)).outcome == pb.UPDATED


def test_what_was_read_can_be_changed_and_sent_back(org: Organization) -> None:
    read = org.upsert("a", 0, 30, title="old").appointment
    read.title = "new"
    response = org.stub.UpsertAppointment(rpc.UpsertAppointmentRequest(appointment=read))
    assert response.outcome == pb.UPDATED
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.UpsertAppointment(rpc.UpsertAppointmentRequest(appointment=read))
    refused = refusal(caught.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert refused.organization_revision == 2


def test_an_etag_must_be_the_stored_one(org: Organization) -> None:
    assert org.refused("a", 0, 30, etag="1").reason == "ETAG_MISMATCH"
    stored = org.upsert("a", 0, 30).appointment
    assert org.refused("a", 0, 40, etag="no such").reason == "ETAG_MISMATCH"
    assert org.refused("a", 0, 40, etag=stored.etag.upper() + "0").reason == "ETAG_MISMATCH"
    assert org.upsert("a", 0, 40, etag=stored.etag).outcome == pb.UPDATED
    with pytest.raises(grpc.RpcError) as caught:
        org.cancel("a", etag=stored.etag)
    assert refusal(caught.value).reason == "ETAG_MISMATCH"
    assert org.cancel("a", etag=org.get("a").etag).outcome == pb.CANCELLED


def test_any_etag_matches_whatever_is_stored(org: Organization) -> None:
    assert org.refused("a", 0, 30, etag="*").reason == "ETAG_MISMATCH"
    org.upsert("a", 0, 30)
    assert org.upsert("a", 0, 40, etag="*").outcome == pb.UPDATED


def test_two_etags_that_differ_are_a_field_error(org: Organization) -> None:
    read = org.upsert("a", 0, 30).appointment
    request = rpc.UpsertAppointmentRequest(appointment=read, etag="ff")
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.UpsertAppointment(request)
    assert set(refusal(caught.value).fields) == {"etag"}


def test_create_only_refuses_an_id_that_was_ever_used(org: Organization) -> None:
    assert org.upsert("a", 0, 30, create_only=True).outcome == pb.CREATED
    refused = org.refused("a", 0, 30, create_only=True)
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "APPOINTMENT_EXISTS",
    )
    org.cancel("a")
    assert org.refused("a", 0, 30, create_only=True).reason == "APPOINTMENT_EXISTS"


def test_validate_only_decides_and_writes_nothing(org: Organization) -> None:
    would = org.upsert("a", 0, 30, validate_only=True)
    assert (would.outcome, would.appointment.version) == (pb.CREATED, 1)
    assert (would.appointment.revision, would.appointment.etag) == (0, "")
    assert org.listed() == {}
    org.upsert("a", 0, 30)
    assert org.refused("b", 0, 30, validate_only=True).reason == "TIME_RANGE_CONFLICT"
    would_move = org.upsert("a", 30, 60, validate_only=True, idempotency_key="k")
    assert (would_move.outcome, would_move.appointment.version) == (pb.UPDATED, 2)
    assert org.cancel("a", validate_only=True).outcome == pb.CANCELLED
    assert org.get("a").state == pb.Appointment.ACTIVE
    assert org.upsert("c", 30, 60, idempotency_key="k").appointment.revision == 2


def test_every_answer_carries_the_organizations_revision(
    org: Organization, stub: AppointmentServiceStub
) -> None:
    request = rpc.UpsertAppointmentRequest(appointment=appointment(org.id, "a", 0, 30))
    for _ in ("created", "unchanged"):
        _, call = stub.UpsertAppointment.with_call(request)
        assert dict(call.trailing_metadata())["organization-revision"] == "1"
    _, get = stub.GetAppointment.with_call(
        rpc.GetAppointmentRequest(organization_id=org.id, id="a")
    )
    assert dict(get.trailing_metadata())["organization-revision"] == "1"


def test_an_actor_may_be_any_text(org: Organization, stub: AppointmentServiceStub) -> None:
    request = rpc.UpsertAppointmentRequest(appointment=appointment(org.id, "a", 0, 30))
    named = "Zoë 😀"
    stub.UpsertAppointment(request, metadata=(("x-actor-bin", named.encode()),))
    assert [entry.actor for entry in org.history("a").entries] == [named]


def test_a_request_id_that_is_there_twice_is_none(
    org: Organization, stub: AppointmentServiceStub
) -> None:
    request = rpc.UpsertAppointmentRequest(appointment=appointment(org.id, "a", 0, 30))
    _, call = stub.UpsertAppointment.with_call(
        request, metadata=(("x-request-id", "r1"), ("x-request-id", "r2"))
    )
    [made] = [value for key, value in call.trailing_metadata() if key == "x-request-id"]
    assert made not in {"r1", "r2"}


def test_the_actor_and_the_key_are_in_the_history(
    org: Organization, stub: AppointmentServiceStub
) -> None:
    request = rpc.UpsertAppointmentRequest(
        appointment=appointment(org.id, "a", 0, 30), idempotency_key="k"
    )
    stub.UpsertAppointment(request, metadata=(("x-actor", "dr-who"),))
    org.cancel("a")
    created, cancelled = org.history("a").entries
    assert (created.actor, created.idempotency_key) == ("dr-who", "k")
    assert (cancelled.actor, cancelled.idempotency_key) == ("", "")
    assert (created.change, cancelled.change) == (
        pb.HistoryEntry.CREATED,
        pb.HistoryEntry.CANCELLED,
    )


def test_attributes_come_back_as_they_were(org: Organization) -> None:
    attributes: dict[str, Any] = {
        "text": "line\nbreak\tand \u202e\U0001f600",
        "numbers": [0, -0.5, 1e300, 5e-324, 2**53, 0.1, 1e21],
        "nested": {"": [None, True, {"deep": []}]},
    }
    org.upsert("a", 0, 30, attributes=attributes)
    expected = Struct()
    expected.update(attributes)
    assert org.get("a").attributes == expected


def test_microseconds_are_kept_and_finer_digits_dropped(org: Organization) -> None:
    seconds = int(MORNING.timestamp())
    request = rpc.UpsertAppointmentRequest(
        appointment=pb.Appointment(
            organization_id=org.id,
            start=Timestamp(seconds=seconds, nanos=1_999),
            end=Timestamp(seconds=seconds, nanos=2_001),
        )
    )
    stored = org.stub.UpsertAppointment(request).appointment
    assert (stored.start.nanos, stored.end.nanos) == (1_000, 2_000)


@pytest.mark.parametrize("seconds", [-62_135_596_800, 253_402_300_700])
def test_the_first_and_the_last_year_can_be_booked(org: Organization, seconds: int) -> None:
    request = rpc.UpsertAppointmentRequest(
        appointment=pb.Appointment(
            organization_id=org.id,
            start=Timestamp(seconds=seconds),
            end=Timestamp(seconds=seconds + 60),
        )
    )
    stored = org.stub.UpsertAppointment(request).appointment
    assert stored.start.seconds == seconds
    assert org.get(stored.id) == stored


def test_errors_say_when_to_try_again_only_if_that_helps(org: Organization) -> None:
    org.upsert("a", 0, 30)
    assert org.refused("b", 0, 30).retry_after is None


def test_conflicts_with_the_longest_ids_still_fit_a_grpc_error(org: Organization) -> None:
    for number in range(20):
        org.upsert(f"{number:02}" + "\U0001f600" * 254, number, number + 1)
    refused = org.refused("long", 0, 20)
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "TIME_RANGE_CONFLICT",
    )
    assert 0 < len(refused.conflicts) < 20
    assert refused.more_conflicts
