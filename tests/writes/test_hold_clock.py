"""Holds end by the database's clock, which does not go back for an organization.

The time of an organization's latest change is a lower bound of its clock. Tests set that time, so
they decide what "now" is, to the microsecond.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import availability_pb2
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from tests.api import Organization, at, batch_request, refused, soon
from tests.api import appointment as wanted
from tests.conftest import StartProgram, listening, new_process
from tests.observing import until
from tests.operations.place import Place

State = pb.Appointment.State
HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def org(place: Place, organization: str) -> Organization:
    return place.organization(organization).org


def timestamp(time: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(time)
    return found


def set_clock(place: Place, org: Organization, now: datetime) -> None:
    """Set what is "now" for an organization, to a time that has not come yet."""
    place.sql.execute(
        "UPDATE organizations SET recorded_at = %s WHERE organization_id = %s", (now, org.id)
    )


def busy(org: Organization, resource_id: str = "") -> int:
    request = availability_pb2.QueryAvailabilityRequest(
        organization_id=org.id, resource_id=[resource_id], to=at(60)
    )
    getattr(request, "from").CopyFrom(at(0))
    [found] = org.stub.QueryAvailability(request, timeout=30).resources
    return len(found.busy)


def expect(org: Organization, state: State.ValueType) -> None:
    """Assert that every reader sees the state of the appointment "a"."""
    shown = ["a"] if state == State.HELD else []
    assert org.get("a").state == state
    assert {id: each.state for id, each in org.listed().items()} == {"a": state}
    assert list(org.listed(include_cancelled=False)) == shown
    window = {"from": at(10), "to": at(20), "include_cancelled": False}
    assert list(org.listed(**window)) == shown
    assert list(org.listed(resource_id="room", include_cancelled=False)) == shown
    assert busy(org) == busy(org, "room") == len(shown)


def test_a_hold_ends_at_its_time_and_not_a_microsecond_earlier(
    place: Place, org: Organization
) -> None:
    end = datetime.now(UTC) + HOUR
    held = org.upsert(
        "a", 0, 30, additional_resource_ids=["room"], hold_until=timestamp(end)
    ).appointment
    set_clock(place, org, end - MICROSECOND)
    expect(org, State.HELD)
    for resource_id in ("", "room"):
        [conflict] = org.refused("b", 0, 30, resource_id=resource_id).conflicts
        assert list(conflict.resource_ids) == [resource_id]
    assert org.get("a").etag == held.etag
    assert org.confirm("a", validate_only=True).outcome == pb.CONFIRMED

    set_clock(place, org, end)
    expect(org, State.EXPIRED)
    assert org.get("a").etag == held.etag + "x"
    assert refused(org.confirm, "a").reason == "HOLD_EXPIRED"
    assert refused(org.confirm, "a", etag=held.etag).reason == "ETAG_MISMATCH"
    for resource_id in ("", "room"):
        response = org.upsert("b", 0, 30, resource_id=resource_id, validate_only=True)
        assert response.outcome == pb.CREATED
    # Nothing of this was recorded.
    assert len(org.changes()) == 1
    assert org.upsert("b", 0, 30, resource_id="room").outcome == pb.CREATED
    assert [entry.change for entry in org.changes()] == [
        pb.HistoryEntry.CREATED,
        pb.HistoryEntry.EXPIRED,
        pb.HistoryEntry.CREATED,
    ]
    org.check_history()


def test_a_hold_must_end_later_than_now_and_within_the_limit(
    place: Place, org: Organization
) -> None:
    now = datetime.now(UTC) + HOUR
    org.upsert("first", 60, 90)
    set_clock(place, org, now)
    for end in (now, now + timedelta(days=1) + MICROSECOND):
        assert set(org.refused("a", 0, 30, hold_until=timestamp(end)).fields) == {
            "appointment.hold_until"
        }
    for end in (now + MICROSECOND, now + timedelta(days=1)):
        assert org.upsert("a", 0, 30, hold_until=timestamp(end)).appointment.state == State.HELD


def test_a_clock_that_is_set_back_revives_nothing_that_was_recorded(
    place: Place, org: Organization
) -> None:
    end = datetime.now(UTC) + HOUR
    org.upsert("a", 0, 30, hold_until=timestamp(end))
    set_clock(place, org, end)
    # From here on the machine's clock is an hour behind that of the organization.
    org.upsert("b", 0, 30)
    assert refused(org.confirm, "a").reason == "HOLD_EXPIRED"
    later = timestamp(end + timedelta(minutes=1))
    assert org.upsert("c", 30, 60, hold_until=later).appointment.state == State.HELD
    assert org.confirm("c").outcome == pb.CONFIRMED
    times = [entry.recorded_at.ToDatetime(UTC) for entry in org.changes()]
    assert times[1:] == [end] * 4
    org.check_history()


def test_writes_of_a_batch_see_one_time(place: Place, org: Organization) -> None:
    """Of two that end in the middle of it, both or none have expired."""
    end = datetime.now(UTC) + HOUR
    org.upsert("a", 0, 30, hold_until=timestamp(end))
    org.upsert("b", 30, 60, hold_until=timestamp(end + MICROSECOND))
    set_clock(place, org, end)
    request = batch_request(
        [wanted(org.id, "c", 0, 10), wanted(org.id, "d", 30, 40), wanted(org.id, "e", 10, 20)]
    )
    results = org.stub.BatchUpsertAppointments(request, timeout=30).results
    assert [result.outcome for result in results] == [pb.CREATED, 0, pb.CREATED]
    [*_, expired, first, second] = org.changes()
    assert [expired.change, first.appointment.id, second.appointment.id] == [
        pb.HistoryEntry.EXPIRED,
        "c",
        "e",
    ]


def test_several_due_neighbours_on_several_resources_are_recorded_at_once(
    place: Place, org: Organization
) -> None:
    end = datetime.now(UTC) + HOUR
    for number, resources in enumerate((("r1",), ("r1", "r2"), ("r3", "r2"), ("r4",))):
        for minute in (0, 10, 20):
            org.upsert(
                f"{number} {minute}",
                minute + number / 10,
                minute + number / 10 + 0.1,
                resource_id=resources[0],
                additional_resource_ids=resources[1:],
                hold_until=timestamp(end),
            )
    org.upsert("firm", 60, 90, resource_id="r2")
    set_clock(place, org, end)
    # One that overlaps the firm one as well needs nothing of them.
    refusal = org.refused("new", 0, 61, resource_id="r1", additional_resource_ids=["r2"])
    assert [each.id for each in refusal.conflicts] == ["firm"]
    assert len(org.changes()) == 13
    org.upsert("new", 0, 15, resource_id="r1", additional_resource_ids=["r2"])
    entries = org.changes(13)
    expired = {each.appointment.id for each in entries if each.change == pb.HistoryEntry.EXPIRED}
    assert expired == {f"{number} {minute}" for number in (0, 1, 2) for minute in (0, 10)}
    assert (len(entries), entries[-1].appointment.id) == (7, "new")
    org.cancel("new")
    for each in org.listed(include_cancelled=False):
        assert each == "firm"


def test_an_atomic_batch_records_the_expired_holds_in_its_way(
    place: Place, org: Organization
) -> None:
    end = datetime.now(UTC) + HOUR
    for id, start, resources in (
        ("before", -10, ["r1"]),
        ("across", -5, ["r2"]),
        ("inside", 10, ["r3", "r1"]),
        ("after", 30, ["r1"]),
        ("itself", 100, ["r1"]),
        ("elsewhere", 0, ["r9"]),
    ):
        org.upsert(
            id,
            start,
            start + 10,
            resource_id=resources[0],
            additional_resource_ids=resources[1:],
            hold_until=timestamp(end),
        )
    set_clock(place, org, end)
    wide = wanted(org.id, "wide", 0, 30, resource_id="r1", additional_resource_ids=["r2"])
    moved = wanted(org.id, "itself", 200, 210, resource_id="r1")
    request = batch_request([wide, moved, wanted(org.id, "overlaps", 5, 10, resource_id="r2")])
    request.atomic = True
    assert refused(org.stub.BatchUpsertAppointments, request).reason == "BATCH_REFUSED"
    assert len(org.changes()) == 6

    request = batch_request([wide, moved])
    request.atomic = True
    results = org.stub.BatchUpsertAppointments(request, timeout=30).results
    assert [result.outcome for result in results] == [pb.CREATED, pb.UPDATED]
    entries = org.changes(6)
    expired = {each.appointment.id for each in entries if each.change == pb.HistoryEntry.EXPIRED}
    assert expired == {"across", "inside", "itself"}
    assert len(entries) == 5
    states = {id: each.state for id, each in org.listed().items()}
    assert states == {
        "before": State.EXPIRED,
        "across": State.EXPIRED,
        "inside": State.EXPIRED,
        "after": State.EXPIRED,
        "itself": State.ACTIVE,
        "elsewhere": State.EXPIRED,
        "wide": State.ACTIVE,
    }


def test_keys_and_late_writes_are_judged_before_and_after_a_hold_expires(
    place: Place, org: Organization
) -> None:
    end = datetime.now(UTC) + HOUR
    hold = {"hold_until": timestamp(end), "updated_at": at(5), "idempotency_key": "k"}
    created = org.upsert("a", 0, 30, **hold)
    org.upsert("confirmed", 30, 60, hold_until=timestamp(end))
    confirmed = org.confirm("confirmed", idempotency_key="c")
    set_clock(place, org, end)
    # The first result again: what it says was true then.
    again = org.upsert("a", 0, 30, **hold)
    assert (again.outcome, again.appointment.state) == (pb.CREATED, State.HELD)
    assert again.appointment == created.appointment
    assert org.confirm("confirmed", idempotency_key="c") == confirmed
    # A refusal leaves no key behind.
    assert refused(org.confirm, "a", idempotency_key="e").reason == "HOLD_EXPIRED"
    assert org.upsert("e", 60, 90, idempotency_key="e").outcome == pb.CREATED
    # An older write than the hold changes nothing, recorded or not.
    for _ in ("due", "recorded"):
        stale = org.upsert("a", 0, 30, updated_at=at(4))
        assert (stale.outcome, stale.appointment.state) == (pb.STALE, State.EXPIRED)
        assert org.get("a").state == State.EXPIRED
        org.upsert("b", 0, 30)
    back = org.upsert("a", 120, 150, updated_at=at(6), etag=org.get("a").etag)
    assert (back.outcome, back.appointment.state) == (pb.UPDATED, State.ACTIVE)
    org.check_history()


def test_a_validated_write_over_an_expired_hold_records_nothing(
    place: Place, org: Organization
) -> None:
    end = datetime.now(UTC) + HOUR
    org.upsert("a", 0, 30, hold_until=timestamp(end))
    set_clock(place, org, end)
    validated = org.upsert("a", 0, 30, validate_only=True)
    assert (validated.outcome, validated.appointment.version) == (pb.UPDATED, 3)
    assert org.upsert("b", 10, 20, validate_only=True).appointment.version == 1
    assert org.cancel("a", validate_only=True).appointment.version == 3
    assert [entry.revision for entry in org.changes()] == [1]
    cancelled = org.cancel("a")
    assert (cancelled.outcome, cancelled.appointment.version) == (pb.CANCELLED, 3)
    org.check_history()


@pytest.fixture
def start_with_clock() -> Iterator[StartProgram]:
    """Start a program whose clock is wrong: `start_with_clock("+1h", url)`.

    Left out where libfaketime is not installed; where CI is set it fails.
    """
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None and not os.environ.get("CI"):
        pytest.skip("libfaketime is not installed (Debian and Ubuntu: apt install libfaketime)")
    assert library is not None
    with ExitStack() as stack:
        yield lambda clock, url, *arguments: listening(
            stack,
            new_process(
                "service",
                {
                    "DATABASE_URL": url,
                    "LD_PRELOAD": str(library),
                    "FAKETIME": clock,
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                },
                *arguments,
            ),
        )


@pytest.mark.parametrize(("clock", "off"), [("+1h", HOUR), ("-1h", -HOUR)])
def test_a_service_and_a_worker_whose_clock_is_wrong_change_nothing(
    place: Place,
    org: Organization,
    start_with_clock: StartProgram,
    clock: str,
    off: timedelta,
) -> None:
    service = start_with_clock(clock, place.url)
    with grpc.insecure_channel(service.address) as channel:
        wrong = Organization(AppointmentServiceStub(channel), org.id)
        # An id that the service makes shows its clock.
        made = uuid.UUID(wrong.upsert(None, 60, 90).appointment.id).int >> 80
        assert abs(datetime.fromtimestamp(made / 1000, UTC) - off - datetime.now(UTC)) < HOUR / 2

        assert set(wrong.refused("a", 0, 30, hold_until=soon(-1)).fields) == {
            "appointment.hold_until"
        }
        assert wrong.refused("a", 0, 30, hold_until=soon(25 * 3600)).reason == "INVALID_FIELD"
        wrong.upsert("a", 0, 30, hold_until=soon(2.5))
        wrong.upsert("c", 30, 60, hold_until=soon(60))
        for each in (org, wrong):
            assert each.get("a").state == State.HELD
            assert [conflict.id for conflict in each.refused("b", 0, 30).conflicts] == ["a"]
            assert busy(each) == 1
        until(lambda: org.get("a").state == State.EXPIRED)
        for each in (org, wrong):
            assert each.get("a").state == State.EXPIRED
            assert refused(each.confirm, "a").reason == "HOLD_EXPIRED"
            assert each.get("c").state == State.HELD
        assert wrong.confirm("c").outcome == pb.CONFIRMED
        wrong.upsert("d", 90, 120, hold_until=soon(60))
        start_with_clock(clock, place.url, "worker")
        until(lambda: org.history("a").entries[-1].change == pb.HistoryEntry.EXPIRED)
        assert org.get("d").state == State.HELD
        org.check_history()
