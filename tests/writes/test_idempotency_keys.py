"""Idempotency keys: a repeated write gets the first result, a different one is refused."""

from typing import Any

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from tests.api import Organization, appointment, at, batch_request, refusal


def test_a_repeated_key_returns_the_first_result_again(org: Organization) -> None:
    first = org.upsert("a", 0, 30, title="x", idempotency_key="k")
    org.upsert("a", 60, 90)
    again = org.upsert("a", 0, 30, title="x", idempotency_key="k")
    assert again == first
    assert len(org.changes()) == 2


def test_a_repeated_key_of_a_write_without_id_makes_no_second_one(org: Organization) -> None:
    first = org.upsert(None, 0, 30, idempotency_key="k")
    assert org.upsert(None, 0, 30, idempotency_key="k") == first
    assert len(org.listed()) == 1


def test_a_key_counts_before_etag_and_create_only(org: Organization) -> None:
    first = org.upsert("a", 0, 30, create_only=True, idempotency_key="k")
    assert org.upsert("a", 0, 30, create_only=True, idempotency_key="k") == first
    update = org.upsert("a", 0, 40, etag=first.appointment.etag, idempotency_key="l")
    assert org.upsert("a", 0, 40, etag=first.appointment.etag, idempotency_key="l") == update


@pytest.mark.parametrize(
    "other",
    [
        {"id": "b"},
        {"id": None},
        {"end": 31},
        {"title": "y"},
        {"resource_id": "r"},
        {"attributes": {"a": 1}},
        {"updated_at": at(1)},
        {"created_at": at(1)},
    ],
)
def test_a_key_of_another_write_is_refused(org: Organization, other: dict[str, object]) -> None:
    write = {"id": "a", "start": 0, "end": 30, "title": "x", "idempotency_key": "k"}
    org.upsert(**write)  # type: ignore[arg-type]
    refused = org.refused(**{**write, **other})  # type: ignore[arg-type]
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "IDEMPOTENCY_KEY_REUSED",
    )
    assert len(org.changes()) == 1


def test_a_key_of_an_upsert_is_refused_to_a_cancel(org: Organization) -> None:
    org.upsert("a", 0, 30, idempotency_key="k")
    with pytest.raises(grpc.RpcError) as caught:
        org.cancel("a", idempotency_key="k")
    assert refusal(caught.value).reason == "IDEMPOTENCY_KEY_REUSED"


def test_a_repeated_cancel_key_returns_the_cancel_again(org: Organization) -> None:
    org.upsert("a", 0, 30)
    first = org.cancel("a", idempotency_key="k")
    org.upsert("a", 0, 30)
    assert org.cancel("a", idempotency_key="k") == first
    assert org.get("a").state == pb.Appointment.ACTIVE


def test_a_repeated_key_of_what_was_unchanged_undoes_nothing(org: Organization) -> None:
    org.upsert("a", 0, 30)
    first = org.upsert("a", 0, 30, idempotency_key="k")
    assert first.outcome == pb.UNCHANGED
    others = org.upsert("a", 60, 90).appointment
    assert org.upsert("a", 0, 30, idempotency_key="k") == first
    assert org.get("a") == others
    assert len(org.changes()) == 2


def test_a_repeated_key_of_what_was_stale_undoes_nothing(org: Organization) -> None:
    org.upsert("a", 0, 30, updated_at=at(10))
    first = org.upsert("a", 0, 40, updated_at=at(9), idempotency_key="k")
    assert first.outcome == pb.STALE
    others = org.upsert("a", 0, 50).appointment  # without a time there is no guard any more
    assert org.upsert("a", 0, 40, updated_at=at(9), idempotency_key="k") == first
    assert org.get("a") == others
    assert len(org.changes()) == 2


def test_a_repeated_key_of_a_second_cancel_leaves_the_new_booking(org: Organization) -> None:
    org.upsert("a", 0, 30)
    org.cancel("a")
    first = org.cancel("a", idempotency_key="k")
    assert first.outcome == pb.UNCHANGED
    booked = org.upsert("a", 0, 30).appointment
    assert org.cancel("a", idempotency_key="k") == first
    assert org.get("a") == booked


def test_a_batch_remembers_what_it_answered(org: Organization) -> None:
    org.upsert("a", 0, 30)
    org.upsert("b", 30, 60, updated_at=at(10))
    request = batch_request(
        [
            appointment(org.id, "a", 0, 30),
            appointment(org.id, "b", 30, 70, updated_at=at(9)),
            appointment(org.id, "a", 0, 30),
        ]
    )
    for item, key in zip(request.requests, ["k", "l", "k"], strict=True):
        item.idempotency_key = key
    first = org.stub.BatchUpsertAppointments(request)
    assert [result.outcome for result in first.results] == [pb.UNCHANGED, pb.STALE, pb.UNCHANGED]
    org.upsert("a", 100, 130)
    org.upsert("b", 200, 230)
    assert org.stub.BatchUpsertAppointments(request) == first
    assert org.upsert("a", 0, 30, idempotency_key="k").appointment == first.results[0].appointment
    assert len(org.changes()) == 4


def test_a_key_of_what_was_unchanged_is_refused_to_another_write(org: Organization) -> None:
    org.upsert("a", 0, 30)
    assert org.upsert("a", 0, 30, idempotency_key="k").outcome == pb.UNCHANGED
    assert org.refused("a", 0, 40, idempotency_key="k").reason == "IDEMPOTENCY_KEY_REUSED"
    assert org.refused("c", 60, 90, idempotency_key="k").reason == "IDEMPOTENCY_KEY_REUSED"


def test_a_refused_or_only_validated_write_leaves_no_key_behind(org: Organization) -> None:
    org.upsert("a", 0, 30, updated_at=at(10))
    assert org.refused("b", 0, 30, idempotency_key="k").reason == "TIME_RANGE_CONFLICT"
    validated: dict[str, Any] = {"validate_only": True, "idempotency_key": "k"}
    assert org.upsert("a", 0, 30, **validated).outcome == pb.UNCHANGED
    assert org.upsert("a", 0, 31, updated_at=at(1), **validated).outcome == pb.STALE
    assert org.upsert("c", 30, 60, idempotency_key="k").outcome == pb.CREATED


def test_a_key_of_a_cancel_is_refused_to_one_of_another_time(org: Organization) -> None:
    org.upsert("a", 0, 30)
    first = org.cancel("a", updated_at=at(5), idempotency_key="k")
    assert org.cancel("a", updated_at=at(5), idempotency_key="k") == first
    for other in ({"updated_at": at(6)}, {}):
        with pytest.raises(grpc.RpcError) as caught:
            org.cancel("a", idempotency_key="k", **other)
        assert refusal(caught.value).reason == "IDEMPOTENCY_KEY_REUSED"


def test_keys_belong_to_one_organization(org: Organization, stub: AppointmentServiceStub) -> None:
    org.upsert("a", 0, 30, idempotency_key="k")
    other = Organization(stub, f"{org.id}-2")
    assert other.upsert("b", 0, 30, idempotency_key="k").outcome == pb.CREATED
