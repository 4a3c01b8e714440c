"""Deliveries with times may be late, out of order or repeated without harm."""

import uuid
from typing import Any

import grpc
import hypothesis.strategies as st
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from hypothesis import given, settings

from tests.api import Organization, at, refusal


def test_an_update_made_before_a_cancel_and_delivered_after_it_is_stale(org: Organization) -> None:
    org.upsert("a", 0, 30, updated_at=at(10))
    cancelled = org.cancel("a", updated_at=at(12)).appointment
    late = org.upsert("a", 0, 40, updated_at=at(11))
    assert (late.outcome, late.appointment) == (pb.STALE, cancelled)
    assert org.upsert("a", 0, 40, updated_at=at(12)).outcome == pb.STALE
    assert org.upsert("a", 0, 40, updated_at=at(13)).outcome == pb.UPDATED
    assert len(org.changes()) == 3


def test_a_cancel_changes_nothing_that_is_shown_but_the_version(org: Organization) -> None:
    before = org.upsert("a", 0, 30, title="x", created_at=at(1), updated_at=at(10)).appointment
    after = org.cancel("a", updated_at=at(12)).appointment
    assert after == org.get("a") == org.changes()[-1].appointment
    assert after == org.get("a", as_of_revision=2)
    for field in ("state", "version", "revision", "etag"):
        before.ClearField(field)
        after.ClearField(field)
    assert after == before


def test_a_cancel_made_before_an_update_and_delivered_after_it_is_stale(org: Organization) -> None:
    stored = org.upsert("a", 0, 30, updated_at=at(10)).appointment
    late = org.cancel("a", updated_at=at(9))
    assert (late.outcome, late.appointment) == (pb.STALE, stored)
    assert org.get("a").state == pb.Appointment.ACTIVE
    assert org.cancel("a", updated_at=at(10)).outcome == pb.CANCELLED
    assert org.cancel("a", updated_at=at(9)).outcome == pb.STALE


def test_the_same_cancel_again_is_unchanged(org: Organization) -> None:
    org.upsert("a", 0, 30, updated_at=at(10))
    first = org.cancel("a", updated_at=at(12))
    for again in (org.cancel("a", updated_at=at(12)), org.cancel("a")):
        assert (again.outcome, again.appointment) == (pb.UNCHANGED, first.appointment)


@pytest.mark.parametrize("first", [{}, {"updated_at": at(12)}])
def test_a_later_cancel_of_what_is_cancelled_guards_from_then_on(
    org: Organization, first: dict[str, Any]
) -> None:
    org.upsert("a", 0, 30)
    org.cancel("a", **first)
    assert org.cancel("a", updated_at=at(16), validate_only=True).outcome == pb.UNCHANGED
    second = org.cancel("a", updated_at=at(14))
    assert (second.outcome, second.appointment) == (pb.UNCHANGED, org.get("a"))
    assert org.upsert("a", 0, 30, updated_at=at(13)).outcome == pb.STALE
    assert org.upsert("a", 0, 30, updated_at=at(15)).outcome == pb.UPDATED
    assert len(org.changes()) == 3


def test_a_cancel_without_a_time_is_held_against_none(org: Organization) -> None:
    org.upsert("a", 0, 30, updated_at=at(10))
    assert org.cancel("a").outcome == pb.CANCELLED
    assert org.upsert("a", 0, 30, updated_at=at(10)).outcome == pb.STALE
    assert org.upsert("a", 0, 30, updated_at=at(11)).outcome == pb.UPDATED


def test_what_is_brought_back_forgets_its_cancel(org: Organization) -> None:
    org.upsert("a", 0, 30)
    org.cancel("a", updated_at=at(12))
    org.upsert("a", 0, 30)
    assert org.upsert("a", 0, 40, updated_at=at(5)).outcome == pb.UPDATED


def test_an_etag_counts_before_the_time_of_a_cancel(org: Organization) -> None:
    stored = org.upsert("a", 0, 30, updated_at=at(10)).appointment
    assert org.cancel("a", updated_at=at(9), etag=stored.etag).outcome == pb.STALE
    with pytest.raises(grpc.RpcError) as caught:
        org.cancel("a", updated_at=at(9), etag="other")
    assert refusal(caught.value).reason == "ETAG_MISMATCH"


# Some of one appointment's writes: their times, and whether each is a cancel.
WRITES = st.dictionaries(st.integers(min_value=1, max_value=6), st.booleans(), min_size=1)


@settings(max_examples=150, deadline=None)
@given(writes=WRITES, data=st.data())
def test_the_latest_write_stands_in_whatever_order_they_come(
    stub: AppointmentServiceStub, writes: dict[int, bool], data: st.DataObject
) -> None:
    org = Organization(stub, f"any-order-{uuid.uuid4()}")
    org.upsert("a", 0, 10, updated_at=at(0))
    order = data.draw(st.permutations(list(writes)))
    repeated = data.draw(st.lists(st.sampled_from(order)))
    for minute in [*order, *repeated]:
        if writes[minute]:
            org.cancel("a", updated_at=at(minute))
        else:
            org.upsert("a", minute, 10, updated_at=at(minute))
    latest = max(writes)
    stored = org.get("a")
    assert (stored.state == pb.Appointment.CANCELLED) == writes[latest]
    if not writes[latest]:
        assert stored.start == at(latest)
    org.check_history()
