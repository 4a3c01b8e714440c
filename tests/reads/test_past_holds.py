"""What was held and what had expired at a revision or time, whether or not that was recorded."""

from datetime import UTC, datetime, timedelta

import pytest
from appointments.v1 import appointment_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from tests.api import Organization, at, soon
from tests.observing import until
from tests.operations.place import Place

HELD, EXPIRED = pb.Appointment.HELD, pb.Appointment.EXPIRED
CONFIRMED, CANCELLED = pb.Appointment.ACTIVE, pb.Appointment.CANCELLED


@pytest.fixture
def org(place: Place, organization: str) -> Organization:
    """An organization of a database without a worker, which would record expired holds."""
    return place.organization(organization).org


def later(time: Timestamp, microseconds: int) -> Timestamp:
    found = Timestamp()
    found.FromNanoseconds(time.ToNanoseconds() + 1000 * microseconds)
    return found


def expect(org: Organization, state: pb.Appointment.State.ValueType, **past: object) -> None:
    """Assert the state of the appointment "a" then, in a read of it and in lists."""
    found = org.get("a", **past)
    assert found.state == state
    assert found.etag.endswith("x") == (state == EXPIRED)
    occupies = state in (HELD, CONFIRMED)
    for filters in (
        {},
        {"resource_id": "room"},
        {"resource_id": ""},
        {"from": at(10), "to": at(20)},
        {"resource_id": "room", "from": at(10)},
    ):
        assert org.listed(**filters, **past).get("a") == found
        shown = org.listed(include_cancelled=False, **filters, **past)
        assert shown.get("a") == (found if occupies else None)


def held(org: Organization, end: Timestamp) -> None:
    org.upsert("a", 0, 30, additional_resource_ids=["room"], hold_until=end)


def wait_until_passed(org: Organization) -> None:
    until(lambda: org.get("a").state == EXPIRED)


def test_a_hold_expires_in_the_past_as_it_did_then(org: Organization) -> None:
    end = soon(2.5)
    held(org, end)
    org.upsert("before", 100, 110)
    wait_until_passed(org)
    org.upsert("after", 110, 120)

    def expect_all() -> None:
        expect(org, HELD, as_of_revision=1)
        expect(org, HELD, as_of_revision=2)
        # Not recorded then, and still expired.
        expect(org, EXPIRED, as_of_revision=3)
        expect(org, HELD, as_of_time=later(end, -1))
        expect(org, EXPIRED, as_of_time=end)
        expect(org, EXPIRED, as_of_time=later(end, 1))

    expect_all()
    assert org.get("a", as_of_revision=3).version == 1
    org.upsert("b", 10, 20, resource_id="room")
    assert [entry.change for entry in org.history("a").entries][1:] == [pb.HistoryEntry.EXPIRED]
    # Its record changes nothing about the time before.
    expect_all()
    for revision in (4, 5):
        expect(org, EXPIRED, as_of_revision=revision)
        assert org.get("a", as_of_revision=revision).version == 2
    recorded_at = org.changes(3)[0].recorded_at
    expect(org, EXPIRED, as_of_time=recorded_at)
    org.check_history()


def test_a_confirmed_or_cancelled_hold_never_expired(org: Organization) -> None:
    end = soon(2.5)
    held(org, end)
    org.upsert("c", 30, 60, hold_until=end)
    confirmed_at = org.confirm("a") and org.changes(2)[0].recorded_at
    org.cancel("c")
    until(lambda: soon(0).ToNanoseconds() > end.ToNanoseconds())
    org.upsert("d", 200, 210)
    expect(org, HELD, as_of_revision=2)
    expect(org, HELD, as_of_time=later(confirmed_at, -1))
    for past in ({"as_of_time": confirmed_at}, {"as_of_time": later(end, 1)}):
        expect(org, CONFIRMED, **past)
    expect(org, CONFIRMED, as_of_revision=5)
    assert org.get("c", as_of_revision=5).state == CANCELLED
    assert org.get("c").state == CANCELLED


def test_an_extended_hold_was_held_meanwhile(org: Organization) -> None:
    first, second = soon(2.5), soon(600)
    held(org, first)
    held(org, second)
    until(lambda: soon(0).ToNanoseconds() > first.ToNanoseconds())
    expect(org, HELD, as_of_revision=1)
    expect(org, HELD, as_of_time=later(first, 1))
    expect(org, HELD, as_of_revision=2)


def test_a_time_to_come_shows_what_is_held_now(org: Organization) -> None:
    held(org, soon(600))
    future = Timestamp()
    future.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    expect(org, HELD, as_of_time=future)


def test_a_past_page_goes_on_with_the_time_of_the_first(org: Organization) -> None:
    """The holds of the second page have expired meanwhile, and had not then."""
    end = soon(2.5)
    for number in range(4):
        org.upsert(f"{number}", number * 10, number * 10 + 10, hold_until=end)
    for past in ({"as_of_revision": 4}, {"as_of_time": later(end, -1)}):
        first = org.list_page(page_size=2, **past)
        until(lambda: org.get("0").state == EXPIRED)
        second = org.list_page(page_size=2, page_token=first.next_page_token, **past)
        shown = [*first.appointments, *second.appointments]
        assert [(each.id, each.state) for each in shown] == [(f"{n}", HELD) for n in range(4)]
