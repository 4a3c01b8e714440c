"""Holds: they occupy their range until they expire, are confirmed or are cancelled."""

import time

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb

from tests.api import Organization, refused, soon
from tests.operations.place import Place

State = pb.Appointment.State


@pytest.fixture
def org(place: Place, organization: str) -> Organization:
    """An organization of a database without a worker, which would record expired holds."""
    return place.organization(organization).org


def expired(org: Organization, id: str, start: float, end: float, seconds: float = 0.3) -> None:
    """Hold a range and wait until the hold has expired, by the clock of the database."""
    held = org.upsert(id, start, end, hold_until=soon(seconds)).appointment
    assert held.state == State.HELD
    while org.get(id).state == State.HELD:
        time.sleep(0.01)


def test_a_hold_occupies_its_range_until_it_expires(org: Organization) -> None:
    held = org.upsert("a", 0, 30, hold_until=soon(1.5)).appointment
    assert held.state == State.HELD
    [conflict] = org.refused("b", 10, 20).conflicts
    assert conflict.id == "a"

    while (found := org.get("a")).state == State.HELD:
        time.sleep(0.01)
    assert found.state == State.EXPIRED
    assert (found.version, found.revision) == (1, 1)
    assert found.etag != held.etag
    assert org.upsert("b", 10, 20).outcome == pb.CREATED
    changes = [(entry.change, entry.appointment.id) for entry in org.changes()]
    assert changes == [
        (pb.HistoryEntry.CREATED, "a"),
        (pb.HistoryEntry.EXPIRED, "a"),
        (pb.HistoryEntry.CREATED, "b"),
    ]
    org.check_history()


def test_a_confirmed_hold_is_firm(org: Organization) -> None:
    org.upsert("a", 0, 30, hold_until=soon(60))
    confirmed = org.confirm("a")
    assert confirmed.outcome == pb.CONFIRMED
    assert confirmed.appointment.state == State.ACTIVE
    assert not confirmed.appointment.HasField("hold_until")
    assert org.confirm("a").outcome == pb.UNCHANGED
    refusal = org.refused("a", 0, 30, hold_until=soon(60))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "APPOINTMENT_FIRM",
    )


def test_an_upsert_extends_a_hold_or_makes_it_firm(org: Organization) -> None:
    org.upsert("a", 0, 30, hold_until=soon(60))
    later = soon(120)
    extended = org.upsert("a", 0, 30, hold_until=later)
    assert extended.outcome == pb.UPDATED
    assert (extended.appointment.state, extended.appointment.hold_until) == (State.HELD, later)
    assert org.upsert("a", 0, 30, hold_until=later).outcome == pb.UNCHANGED
    firm = org.upsert("a", 0, 30).appointment
    assert firm.state == State.ACTIVE


def test_an_expired_hold_is_refused_and_an_upsert_brings_it_back(org: Organization) -> None:
    expired(org, "a", 0, 30)
    assert refused(org.confirm, "a").reason == "HOLD_EXPIRED"
    assert refused(org.update, "a", {"title": "x"}).reason == "HOLD_EXPIRED"
    back = org.upsert("a", 0, 30)
    assert (back.outcome, back.appointment.version) == (pb.UPDATED, 3)
    assert [entry.change for entry in org.history("a").entries] == [
        pb.HistoryEntry.CREATED,
        pb.HistoryEntry.EXPIRED,
        pb.HistoryEntry.UPDATED,
    ]
    org.check_history()


def test_a_cancelled_hold_cannot_be_confirmed(org: Organization) -> None:
    org.upsert("a", 0, 30, hold_until=soon(60))
    org.cancel("a")
    assert refused(org.confirm, "a").reason == "APPOINTMENT_CANCELLED"
    assert refused(org.confirm, "b").reason == "APPOINTMENT_NOT_FOUND"


def test_a_hold_ends_in_the_future_and_within_a_day(org: Organization) -> None:
    for seconds in (-1, 24 * 3600 + 60):
        refusal = org.refused("a", 0, 30, hold_until=soon(seconds))
        assert refusal.fields == {
            "appointment.hold_until": "must be later than now, by at most 24 hours"
        }
    assert org.changes() == []


def test_lists_show_holds_until_they_expire(org: Organization) -> None:
    expired(org, "a", 0, 30)
    org.upsert("b", 30, 60, hold_until=soon(60))
    assert list(org.listed(include_cancelled=False)) == ["b"]
    assert list(org.listed(include_cancelled=True)) == ["a", "b"]


def test_what_was_held_then_is_held_as_of_then(org: Organization) -> None:
    expired(org, "a", 0, 30)
    assert org.get("a", as_of_revision=1).state == State.HELD
    org.upsert("b", 60, 90)
    # Expired by then, though its expiry is not recorded.
    assert org.get("a", as_of_revision=2).state == State.EXPIRED
