"""Atomic batches: all or nothing, judged on the final state."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc

from tests.api import Organization, Refusal, appointment, at, batch_request, refused


def items(
    org: Organization, *wanted: tuple[str, float, float]
) -> rpc.BatchUpsertAppointmentsRequest:
    request = batch_request(appointment(org.id, *item) for item in wanted)
    request.atomic = True
    return request


def refusal_of_batch(
    org: Organization, *wanted: tuple[str, float, float], **options: Any
) -> Refusal:
    refusal = refused(org.stub.BatchUpsertAppointments, items(org, *wanted), **options)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "BATCH_REFUSED")
    return refusal


def test_appointments_swap_and_rotate(org: Organization) -> None:
    org.upsert("a", 0, 30)
    org.upsert("b", 30, 60)
    org.upsert("c", 60, 90)
    request = items(org, ("a", 30, 60), ("b", 60, 90), ("c", 0, 30))
    results = org.stub.BatchUpsertAppointments(request).results
    assert [result.outcome for result in results] == [pb.UPDATED] * 3
    assert list(org.listed()) == ["c", "a", "b"]
    org.check_history()


def test_a_refused_batch_writes_nothing_and_names_every_item(org: Organization) -> None:
    org.upsert("outside", 100, 130)
    org.upsert("a", 0, 30)
    org.upsert("b", 30, 60)
    refusal = refusal_of_batch(
        org, ("a", 30, 60), ("b", 0, 30), ("c", 110, 120), ("d", 200, 230), ("e", 220, 240)
    )
    assert [(item.index, item.code) for item in refusal.items] == [
        (2, "TIME_RANGE_CONFLICT"),
        (3, "TIME_RANGE_CONFLICT"),
        (4, "TIME_RANGE_CONFLICT"),
    ]
    conflicts = [[(c.id, c.HasField("index"), c.index) for c in i.conflicts] for i in refusal.items]
    assert conflicts == [[("outside", False, 0)], [("e", True, 4)], [("d", True, 3)]]
    assert refusal.organization_revision == 3
    assert len(org.changes()) == 3


def test_an_id_or_a_key_given_twice_is_invalid(org: Organization) -> None:
    request = items(org, ("a", 0, 30), ("a", 60, 90), ("c", 10, 5))
    request.requests[0].idempotency_key = request.requests[2].idempotency_key = "k"
    assert set(refused(org.stub.BatchUpsertAppointments, request).fields) == {
        "requests[1].appointment.id",
        "requests[2].appointment.end",
        "requests[2].idempotency_key",
    }


def test_validation_judges_the_final_state_and_writes_nothing(org: Organization) -> None:
    org.upsert("a", 0, 30)
    org.upsert("b", 30, 60)
    request = items(org, ("a", 30, 60), ("b", 0, 30))
    request.validate_only = True
    results = org.stub.BatchUpsertAppointments(request).results
    assert [(result.outcome, result.appointment.etag) for result in results] == [
        (pb.UPDATED, "")
    ] * 2
    assert len(org.changes()) == 2


def thousand(
    org: Organization, place: Callable[[int], int] = lambda n: n, **fields: Any
) -> rpc.BatchUpsertAppointmentsRequest:
    """A batch of 1,000 items of ten minutes, item n at place(n)."""
    request = batch_request(
        appointment(org.id, f"{n}", place(n) * 10, place(n) * 10 + 10, **fields)
        for n in range(1000)
    )
    request.atomic = True
    return request


def outcomes(org: Organization, request: rpc.BatchUpsertAppointmentsRequest) -> list[int]:
    return [result.outcome for result in org.stub.BatchUpsertAppointments(request).results]


@contextmanager
def two_seconds() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 2


def refused_within_two_seconds(
    org: Organization, request: rpc.BatchUpsertAppointmentsRequest
) -> Refusal:
    """Send it up to three times, as it changes nothing: other tests use the same processors."""
    for _ in range(3):
        began = time.monotonic()
        refusal = refused(org.stub.BatchUpsertAppointments, request)
        if time.monotonic() - began < 2:
            return refusal
    raise AssertionError("three times it took longer than two seconds")


def test_a_thousand_items_are_written_or_refused_within_two_seconds(org: Organization) -> None:
    with two_seconds():
        assert outcomes(org, thousand(org)) == [pb.CREATED] * 1000
    with two_seconds():
        assert outcomes(org, thousand(org, title="t")) == [pb.UPDATED] * 1000
    rotated = thousand(org, lambda n: (n + 1) % 1000, title="t")
    with two_seconds():
        assert outcomes(org, rotated) == [pb.UPDATED] * 1000
    with two_seconds():
        assert outcomes(org, rotated) == [pb.UNCHANGED] * 1000
    taken = thousand(org)
    for item in taken.requests:
        item.appointment.id += " again"
    refusal = refused_within_two_seconds(org, taken)
    # What is refused lies among other items, which are all in the way of each other for a moment.
    among = thousand(org, lambda n: (n + 3) % 1000 if n else 1)
    refusal_among = refused_within_two_seconds(org, among)
    assert [item.index for item in refusal_among.items] == [0, 998]
    assert [[c.id for c in item.conflicts] for item in refusal_among.items] == [["998"], ["0"]]
    assert (refusal.reason, refusal.more_items) == ("BATCH_REFUSED", True)
    assert refusal.organization_revision == 3000
    assert len(org.listed()) == 1000
    assert [item.index for item in refusal.items] == list(range(len(refusal.items)))
    assert [[c.id for c in item.conflicts] for item in refusal.items] == [
        [str((n - 1) % 1000)] for n in range(len(refusal.items))
    ]
    org.check_history()


def test_a_repeated_batch_gets_the_same_answer(org: Organization) -> None:
    org.upsert("a", 0, 30)
    org.upsert("b", 30, 60)
    request = items(org, ("a", 30, 60), ("b", 0, 30), ("c", 60, 90))
    for number, item in enumerate(request.requests):
        item.idempotency_key = f"key {number}"
    first = org.stub.BatchUpsertAppointments(request)
    org.upsert("a", 200, 230)
    assert org.stub.BatchUpsertAppointments(request) == first
    assert len(org.changes()) == 6


def test_an_item_whose_key_was_used_stays_where_it_is(org: Organization) -> None:
    first = org.upsert("a", 0, 30, idempotency_key="key")
    org.upsert("a", 60, 90)
    request = items(org, ("a", 0, 30), ("b", 0, 30))
    request.requests[0].idempotency_key = "key"
    results = org.stub.BatchUpsertAppointments(request).results
    assert (results[0].outcome, results[0].appointment) == (pb.CREATED, first.appointment)
    assert results[1].outcome == pb.CREATED
    assert [(a.id, a.start) for a in org.listed().values()] == [("b", at(0)), ("a", at(60))]
    # Where it is, it is in the way.
    request = items(org, ("a", 0, 30), ("c", 70, 80))
    request.requests[0].idempotency_key = "key"
    [item] = refused(org.stub.BatchUpsertAppointments, request).items
    assert (item.index, [(c.id, c.index) for c in item.conflicts]) == (1, [("a", 0)])


def test_items_that_change_nothing_keep_their_place(org: Organization) -> None:
    org.upsert("late", 0, 30, updated_at=at(10))
    org.upsert("same", 30, 60)
    request = items(org, ("late", 100, 130), ("same", 30, 60), ("new", 100, 130))
    request.requests[0].appointment.updated_at.CopyFrom(at(5))
    assert outcomes(org, request) == [pb.STALE, pb.UNCHANGED, pb.CREATED]
    request = items(org, ("late", 200, 230), ("same", 30, 60), ("x", 20, 25), ("y", 40, 50))
    request.requests[0].appointment.updated_at.CopyFrom(at(5))
    refusal = refused(org.stub.BatchUpsertAppointments, request)
    assert [(item.index, [c.index for c in item.conflicts]) for item in refusal.items] == [
        (2, [0]),
        (3, [1]),
    ]
    org.check_history()


def test_conditions_of_items_are_all_judged(org: Organization) -> None:
    first = org.upsert("a", 0, 30).appointment
    org.upsert("a", 0, 31)
    org.upsert("b", 40, 50, idempotency_key="key")
    request = items(org, ("a", 0, 30), ("b", 40, 45), ("c", 60, 70), ("d", 5, 10))
    request.requests[0].etag = first.etag
    request.requests[1].create_only = True
    request.requests[2].idempotency_key = "key"
    refusal = refused(org.stub.BatchUpsertAppointments, request)
    # What a refused item leaves or takes is not judged, so the last one is not at fault.
    assert [(item.index, item.code) for item in refusal.items] == [
        (0, "ETAG_MISMATCH"),
        (1, "APPOINTMENT_EXISTS"),
        (2, "IDEMPOTENCY_KEY_REUSED"),
    ]
    assert len(org.changes()) == 3


def test_a_batch_of_one_and_an_empty_one(org: Organization) -> None:
    assert outcomes(org, items(org, ("a", 0, 30))) == [pb.CREATED]
    [item] = refusal_of_batch(org, ("b", 10, 20)).items
    assert (item.index, [c.id for c in item.conflicts]) == (0, ["a"])
    assert not item.conflicts[0].HasField("index")
    refusal = refused(
        org.stub.BatchUpsertAppointments, rpc.BatchUpsertAppointmentsRequest(atomic=True)
    )
    assert set(refusal.fields) == {"requests"}


def test_items_without_ids_get_ids(org: Organization) -> None:
    request = batch_request(appointment(org.id, None, n, n + 1) for n in range(3))
    request.atomic = True
    results = org.stub.BatchUpsertAppointments(request).results
    assert [result.appointment.id for result in results] == list(org.listed())
    assert len(set(org.listed())) == 3
