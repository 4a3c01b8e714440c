"""Appointments of several resources: they conflict where any of them is occupied."""

import psycopg
from appointments.v1 import appointment_pb2 as pb

from tests.api import Organization, at, soon


def test_each_resource_is_occupied(org: Organization) -> None:
    org.upsert("a", 0, 30, resource_id="anna", additional_resource_ids=["room 1", "laser"])
    for resource in ("anna", "room 1", "laser"):
        [conflict] = org.refused("b", 10, 40, resource_id=resource).conflicts
        assert (conflict.id, list(conflict.resource_ids)) == ("a", [resource])
    [conflict] = org.refused(
        "b", 10, 40, resource_id="laser", additional_resource_ids=["bob", "anna"]
    ).conflicts
    assert list(conflict.resource_ids) == ["laser", "anna"]
    assert org.upsert("b", 10, 40, resource_id="bob").outcome == pb.CREATED
    assert org.upsert("c", 30, 40, resource_id="room 1").outcome == pb.CREATED


def test_resources_can_change_places(org: Organization) -> None:
    org.upsert("a", 0, 30, resource_id="anna", additional_resource_ids=["room 1"])
    swapped = org.upsert("a", 10, 40, resource_id="room 1", additional_resource_ids=["anna"])
    assert swapped.outcome == pb.UPDATED
    org.upsert("a", 10, 40, resource_id="room 2")
    assert org.upsert("b", 10, 40, resource_id="anna").outcome == pb.CREATED
    org.cancel("a")
    assert org.upsert("c", 10, 40, resource_id="room 2").outcome == pb.CREATED


def test_a_list_of_a_resource_shows_whom_it_serves(org: Organization) -> None:
    whole = org.upsert("a", 0, 30, resource_id="anna", additional_resource_ids=["r", "s"])
    org.upsert("b", 30, 60, resource_id="r")
    assert list(org.listed(resource_id="r")) == ["a", "b"]
    assert org.listed(resource_id="s") == {"a": whole.appointment}
    assert list(org.listed()) == ["a", "b"]
    assert list(org.listed(resource_id="s", as_of_revision=2)) == ["a"]


def test_resources_are_distinct(org: Organization) -> None:
    fields = org.refused(
        "a", 0, 30, resource_id="r", additional_resource_ids=["s", "r", "s", "", "x" * 257]
    ).fields
    assert set(fields) == {f"appointment.additional_resource_ids[{n}]" for n in (1, 2, 3, 4)}
    many = [str(n) for n in range(16)]
    fields = org.refused("a", 0, 30, additional_resource_ids=many).fields
    assert set(fields) == {"appointment.additional_resource_ids"}


def test_a_conflict_names_free_ranges(org: Organization) -> None:
    org.upsert("a", 0, 30, resource_id="anna")
    org.upsert("b", 45, 60, resource_id="r")
    refusal = org.refused("c", 10, 30, resource_id="anna", additional_resource_ids=["r"], suggest=3)
    minutes = [
        ((free.start.seconds // 60) % 1440 - 480, (free.end.seconds // 60) % 1440 - 480)
        for free in refusal.alternatives
    ]
    assert minutes == [(60, 80), (80, 100), (100, 120)]


def test_the_rows_of_further_resources_follow_their_appointment(
    org: Organization, database_url: str
) -> None:
    def check(id: str, *resources: str) -> None:
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT resource_id, ordinal, start_time, end_time, state, hold_until, revision"
                " FROM appointments WHERE organization_id = %s AND appointment_id = %s"
                " ORDER BY ordinal",
                (org.id, id),
            ).fetchall()
        assert [row[:2] for row in rows] == [(each, n) for n, each in enumerate(resources)]
        assert len({row[2:] for row in rows}) == 1

    org.upsert("a", 0, 30, resource_id="r", additional_resource_ids=["s", "t"])
    check("a", "r", "s", "t")
    org.upsert("a", 10, 50, resource_id="t", additional_resource_ids=["r", "u", "s"])
    check("a", "t", "r", "u", "s")
    org.update("a", {"end": at(40)})
    check("a", "t", "r", "u", "s")
    org.cancel("a")
    check("a", "t", "r", "u", "s")
    org.upsert("a", 0, 30, resource_id="t", additional_resource_ids=["r"], hold_until=soon(600))
    check("a", "t", "r")
    org.confirm("a")
    check("a", "t", "r")
    org.upsert("a", 0, 30, resource_id="r")
    check("a", "r")
    org.check_history()
