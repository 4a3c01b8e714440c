"""Partial updates: only what the mask names changes, judged on the stored state."""

import threading
from typing import Any

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from google.protobuf.struct_pb2 import Struct

from tests.api import Organization, appointment, at, refused, soon


def struct(**members: Any) -> Struct:
    made = Struct()
    made.update(members)
    return made


def test_only_what_the_mask_names_changes(org: Organization) -> None:
    first = org.upsert("a", 0, 30, title="Haircut", resource_id="anna", attributes={"n": 1})
    updated = org.update("a", {"title": "Colour", "start": at(5)}, ["title"])
    assert updated.outcome == pb.UPDATED
    expected = first.appointment
    assert updated.appointment.start == expected.start
    assert updated.appointment.title == "Colour"
    assert updated.appointment.attributes == expected.attributes
    assert org.update("a", {"title": "Colour"}).outcome == pb.UNCHANGED
    assert org.update("a", {}, ["title"]).appointment.title == ""


def test_attributes_are_merged(org: Organization) -> None:
    org.upsert("a", 0, 30, attributes={"a": 1, "b": {"c": 1, "d": [1]}, 'ö"\n': "x"})
    patched = org.update("a", {}, attributes_patch=struct(a=None, b={"c": None, "e": 1e300}, f={}))
    assert dict(patched.appointment.attributes) == {
        "b": struct(d=[1], e=1e300),
        'ö"\n': "x",
        "f": struct(),
    }
    same = org.upsert("a", 0, 30, attributes={"b": {"d": [1], "e": 1e300}, 'ö"\n': "x", "f": {}})
    assert same.outcome == pb.UNCHANGED


def test_two_updates_of_different_fields_both_hold(org: Organization) -> None:
    org.upsert("a", 0, 30)
    barrier = threading.Barrier(2)

    def change(name: str) -> None:
        for number in range(50):
            barrier.wait()
            org.update("a", {}, attributes_patch=struct(**{f"{name}{number}": number}))

    threads = [threading.Thread(target=change, args=(name,)) for name in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(org.get("a").attributes) == 100


def test_an_update_that_breaks_a_rule_with_what_is_stored_is_refused(org: Organization) -> None:
    org.upsert("a", 0, 30, resource_id="r", attributes={"a": "x" * 10_000})
    org.upsert("b", 60, 90, resource_id="s")
    assert set(refused(org.update, "a", {"start": at(40)}).fields) == {"appointment.end"}
    more = refused(org.update, "a", {}, attributes_patch=struct(b="x" * 10_000))
    assert set(more.fields) == {"attributes_patch"}
    resources = refused(org.update, "a", {"additional_resource_ids": ["r"]}, None)
    assert set(resources.fields) == {"appointment.additional_resource_ids"}
    [conflict] = refused(
        org.update, "a", {"end": at(70), "additional_resource_ids": ["s"]}
    ).conflicts
    assert conflict.id == "b"
    assert len(org.changes()) == 2


def test_what_is_missing_or_cancelled_is_refused(org: Organization) -> None:
    assert refused(org.update, "a", {"title": "x"}).reason == "APPOINTMENT_NOT_FOUND"
    org.upsert("a", 0, 30)
    org.cancel("a")
    refusal = refused(org.update, "a", {"title": "x"})
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "APPOINTMENT_CANCELLED",
    )


def test_a_missing_one_is_created_if_that_is_allowed(org: Organization) -> None:
    wanted = {"start": at(0), "end": at(30), "title": "x"}
    assert set(refused(org.update, "a", {"title": "x"}, allow_missing=True).fields) == {
        "appointment.start",
        "appointment.end",
    }
    created = org.update("a", wanted, allow_missing=True, attributes_patch=struct(a=1, b=None))
    assert created.outcome == pb.CREATED
    assert dict(created.appointment.attributes) == {"a": 1}
    assert org.update("a", wanted, allow_missing=True).outcome == pb.UNCHANGED


def test_an_update_keeps_the_callers_time_and_renews_the_services(org: Organization) -> None:
    org.upsert("a", 0, 30, updated_at=at(5))
    assert org.update("a", {"title": "x"}).appointment.updated_at == at(5)
    own = org.upsert("b", 30, 60).appointment
    assert org.update("b", {"title": "x"}).appointment.updated_at != own.updated_at
    assert org.update("a", {"title": "y", "updated_at": at(4)}).outcome == pb.STALE


def test_an_update_extends_a_hold_or_makes_it_firm(org: Organization) -> None:
    org.upsert("a", 0, 30, hold_until=soon(60))
    kept = org.update("a", {"title": "x"}).appointment
    assert kept.state == pb.Appointment.HELD
    later = soon(120)
    assert org.update("a", {"hold_until": later}).appointment.hold_until == later
    assert org.update("a", {}, ["hold_until"]).appointment.state == pb.Appointment.ACTIVE


@pytest.mark.parametrize("path", ["id", "organization_id", "state", "attributes.a", "nothing", ""])
def test_a_mask_names_only_fields_that_can_change(org: Organization, path: str) -> None:
    assert set(refused(org.update, "a", {}, [path]).fields) == {"update_mask"}


def test_a_star_replaces_everything(org: Organization) -> None:
    org.upsert("a", 0, 30, title="x", attributes={"a": 1})
    wanted = appointment(org.id, "a", 0, 30)
    replaced = org.update("a", {"start": wanted.start, "end": wanted.end}, ["*"])
    assert (replaced.appointment.title, dict(replaced.appointment.attributes)) == ("", {})
