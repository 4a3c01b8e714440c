"""Batches: each item is decided separately, in order, and sees the previous ones."""

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc

from tests.api import Organization, appointment, batch_request, refusal, refusal_of


def test_a_batch_is_answered_item_by_item_in_order(org: Organization) -> None:
    items = [
        appointment(org.id, "a", 0, 30),
        appointment(org.id, "b", 10, 40),
        appointment(org.id, "c", 30, 20),
        appointment(org.id, "d", 30, 60),
        appointment(org.id, "a", 0, 20),
        appointment(org.id, "b", 20, 30),
    ]
    results = org.stub.BatchUpsertAppointments(batch_request(items)).results
    outcomes = [result.outcome if result.HasField("outcome") else None for result in results]
    assert outcomes == [pb.CREATED, None, None, pb.CREATED, pb.UPDATED, pb.CREATED]
    taken = refusal_of(results[1].error, grpc.StatusCode.ALREADY_EXISTS)
    assert [conflict.id for conflict in taken.conflicts] == ["a"]
    invalid = refusal_of(results[2].error, grpc.StatusCode.INVALID_ARGUMENT)
    assert set(invalid.fields) == {"appointment.end"}
    org.check_history()


def test_a_batch_of_one_thousand_is_taken_and_one_more_is_not(org: Organization) -> None:
    def batch(count: int) -> rpc.BatchUpsertAppointmentsRequest:
        return batch_request(appointment(org.id, str(n), n, n + 1) for n in range(count))

    results = org.stub.BatchUpsertAppointments(batch(1000)).results
    assert [result.outcome for result in results] == [pb.CREATED] * 1000
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.BatchUpsertAppointments(batch(1001))
    assert set(refusal(caught.value).fields) == {"requests"}
    org.check_history()


def test_a_batch_belongs_to_one_organization(org: Organization) -> None:
    request = batch_request(appointment(id, "a", 0, 30) for id in (org.id, org.id, "another"))
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.BatchUpsertAppointments(request)
    assert set(refusal(caught.value).fields) == {"requests[2].appointment.organization_id"}
    assert org.listed() == {}


def test_an_empty_batch_is_refused(org: Organization) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.BatchUpsertAppointments(rpc.BatchUpsertAppointmentsRequest())
    assert set(refusal(caught.value).fields) == {"requests"}


def test_a_batch_of_mistakes_still_fits_a_grpc_error(org: Organization) -> None:
    request = batch_request(appointment(f"{org.id}-{number}", "a", 0, 1) for number in range(1000))
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.BatchUpsertAppointments(request)
    refused = refusal(caught.value)
    assert refused.reason == "INVALID_FIELD"
    assert "requests[1].appointment.organization_id" in refused.fields


def test_a_batch_tells_the_revision_even_if_all_is_refused(org: Organization) -> None:
    org.upsert("a", 0, 30)
    request = batch_request(appointment(org.id, id, 0, 30) for id in "bc")
    _, call = org.stub.BatchUpsertAppointments.with_call(request)
    assert dict(call.trailing_metadata())["organization-revision"] == "1"


def test_the_largest_batch_gets_an_answer_that_fits(org: Organization) -> None:
    """All of it is stored or all refused. Clients accept 4 MiB."""
    title = "\U0001f600" * 700

    def batch(id: str) -> rpc.BatchUpsertAppointmentsRequest:
        wanted = [
            appointment(org.id, f"{id}{n:03}" + "i" * 100, n, n + 1, title=title)
            for n in range(990)
        ]
        return batch_request(wanted)

    assert 2_900_000 < batch("a").ByteSize() < 3 * 1024 * 1024
    stored = org.stub.BatchUpsertAppointments(batch("a")).results
    assert {result.outcome for result in stored} == {pb.CREATED}
    refused = org.stub.BatchUpsertAppointments(batch("b")).results
    assert {result.error.code for result in refused} == {grpc.StatusCode.ALREADY_EXISTS.value[0]}
