"""PATCH, PUT and the confirmation of an appointment, from the client to the database."""

import asyncio
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector

from local.programs import Program
from tests.conftest import StartProgram
from tests.rest_client import END, START, Client, status_and_code

LATER = "2030-01-07T10:00:00Z"


@pytest.fixture
def rest(gateway: Program, organization: str) -> Client:
    return Client(gateway, organization)


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_a_patch_changes_what_it_holds(rest: Client) -> None:
    before = rest.upsert(title="Cut", attributes={"a": 1, "b": {"c": 2, "d": 3}}).json
    patch = {"end": "2030-01-07 10:00", "attributes": {"a": None, "b": {"c": None, "e": 4}}}
    answer = rest.patch("a", patch)
    assert answer.status == 200
    changed = {
        "end": LATER,
        "attributes": {"b": {"d": 3, "e": 4}},
        "updatedAt": answer.json["updatedAt"],
        "version": 2,
        "revision": "2",
        "etag": "2",
    }
    assert answer.json == {**before, **changed}
    assert answer.headers["ETag"] == '"2"'
    assert answer.headers["Appointment-Outcome"] == "UPDATED"
    assert answer.headers["Organization-Revision"] == "2"
    location = answer.headers["Location"]
    assert rest.send("GET", location).json == answer.json
    assert rest.send("PATCH", location, b"{}", Content_Type="application/json").status == 200


def test_an_empty_patch_changes_nothing(rest: Client) -> None:
    stored = rest.upsert(title="x").json
    same: list[dict[str, Any]] = [{"attributes": {}}, {"title": "x"}, {"attributes": {"a": None}}]
    for patch in ({}, *same, stored):
        answer = rest.patch("a", patch)
        assert answer.status == 200
        assert answer.headers["Appointment-Outcome"] == "UNCHANGED"
        assert answer.json == stored


def test_null_clears(rest: Client) -> None:
    rest.upsert(
        title="x",
        resourceId="r",
        additionalResourceIds=["s"],
        attributes={"a": 1},
        createdAt=START,
        updatedAt=START,
        holdUntil=in_seconds(60),
    )
    cleared = dict.fromkeys(
        (
            "title",
            "resourceId",
            "additionalResourceIds",
            "attributes",
            "createdAt",
            "updatedAt",
            "holdUntil",
        )
    )
    answer = rest.patch("a", cleared)
    assert answer.status == 200
    stored = answer.json
    assert (stored["title"], stored["resourceId"], stored["attributes"]) == ("", "", {})
    assert (stored["additionalResourceIds"], stored["state"]) == ([], "ACTIVE")
    assert "holdUntil" not in stored
    assert stored["createdAt"] == START  # there is no other time of its creation
    assert stored["updatedAt"] != START
    for name in ("start", "end"):
        refused = rest.patch("a", {name: None})
        assert (refused.status, refused.fields) == (400, {name})


def test_a_patch_is_judged_with_what_is_stored(rest: Client) -> None:
    rest.upsert("a", resourceId="r", attributes={"a": "x" * 10_000})
    rest.upsert("b", resourceId="r", start=END, end=LATER)
    assert rest.patch("a", {"start": LATER}).json["errors"] == [
        {
            "field": "end",
            "detail": "must be after start, by at most 3,653 days; a field that is not sent keeps"
            " its stored value",
        }
    ]
    assert rest.patch("a", {"additionalResourceIds": ["r"]}).json["errors"] == [
        {
            "field": "additionalResourceIds",
            "detail": "must differ from the appointment's first resource; a field that is not sent"
            " keeps its stored value",
        }
    ]
    assert rest.patch("a", {"attributes": {"b": "x" * 10_000}}).fields == {"attributes"}
    taken = rest.patch("a", {"end": "2030-01-07 09:00"})
    assert status_and_code(taken) == (409, "TIME_RANGE_CONFLICT")
    assert [conflict["id"] for conflict in taken.json["conflicts"]] == ["b"]
    assert status_and_code(rest.patch("nobody", {})) == (404, "APPOINTMENT_NOT_FOUND")
    rest.call("DELETE", "/appointments/a")
    assert status_and_code(rest.patch("a", {})) == (409, "APPOINTMENT_CANCELLED")


def test_a_patch_creates_only_if_that_is_allowed(rest: Client) -> None:
    allowed = "&allowMissing=true"
    missing = rest.patch("a", {"title": "x"}, query=allowed)
    assert (missing.status, missing.fields) == (400, {"start", "end"})
    wanted = {"start": START, "end": END, "attributes": {"a": 1, "b": None}}
    assert rest.patch("a", wanted, query=allowed + "&validateOnly=true").status == 200
    created = rest.patch("a", wanted, query=allowed)
    assert (created.status, created.json["attributes"]) == (201, {"a": 1})
    assert created.headers["Appointment-Outcome"] == "CREATED"
    assert created.headers["Location"].startswith("/api/appointments/a?")
    assert rest.patch("a", wanted, query=allowed).status == 200


def test_a_put_replaces_all(rest: Client) -> None:
    created = rest.put("a", {"start": START, "end": END, "title": "x"})
    assert created.status == 201
    assert created.headers["Appointment-Outcome"] == "CREATED"
    again = rest.put("a", created.json)
    assert (again.status, again.headers["Appointment-Outcome"]) == (200, "UNCHANGED")
    replaced = rest.put("a", {"start": START, "end": END})
    assert (replaced.status, replaced.json["title"]) == (200, "")
    assert rest.put("a", {**created.json, "id": "b"}).fields == {"id"}
    assert rest.put("a", {**created.json, "organizationId": "other"}).fields == {"organizationId"}
    assert status_and_code(rest.put("a", created.json)) == (412, "ETAG_MISMATCH")  # of the body
    refused = rest.put("a", {"start": START, "end": END}, If_None_Match="*")
    assert status_and_code(refused) == (412, "APPOINTMENT_EXISTS")


def test_conditions_and_keys_hold_for_every_write(rest: Client) -> None:
    rest.upsert(title="1", holdUntil=in_seconds(60))
    content = {"start": START, "end": END, "title": "3"}
    for answer in (
        rest.patch("a", {"title": "2"}, If_Match='"7"'),
        rest.patch("a", {"title": "2", "etag": "7"}),
        rest.put("a", content, If_Match='"7"'),
        rest.confirm("a", If_Match='"7"'),
        rest.patch("nobody", {}, If_Match="*"),
    ):
        assert status_and_code(answer) == (412, "ETAG_MISMATCH")
    first = rest.patch("a", {"title": "2"}, If_Match='"1", "7"', Idempotency_Key="patch")
    assert (first.status, first.json["title"]) == (200, "2")
    confirmed = rest.confirm("a", If_Match='"2"', Idempotency_Key="confirm")
    assert (confirmed.status, confirmed.json["state"]) == (200, "ACTIVE")
    assert confirmed.headers["Appointment-Outcome"] == "CONFIRMED"
    assert confirmed.headers["ETag"] == '"3"'
    put = rest.put("a", content, If_Match='"3"', Idempotency_Key="put")
    assert put.json["version"] == 4
    for repeated, answer in (
        (rest.patch("a", {"title": "2"}, If_Match='"1"', Idempotency_Key="patch"), first),
        (rest.confirm("a", If_Match='"2"', Idempotency_Key="confirm"), confirmed),
        (rest.put("a", content, If_Match='"3"', Idempotency_Key="put"), put),
    ):
        assert repeated.json == answer.json
        outcome = repeated.headers["Appointment-Outcome"]
        assert outcome == answer.headers["Appointment-Outcome"]
    other = rest.patch("a", {"title": "4"}, Idempotency_Key="patch")
    assert status_and_code(other) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert rest.call("GET", "/appointments/a").json == put.json


def test_a_confirmation_needs_a_hold(rest: Client) -> None:
    assert status_and_code(rest.confirm("a")) == (404, "APPOINTMENT_NOT_FOUND")
    rest.upsert(holdUntil=in_seconds(60))
    dry_run = rest.confirm("a", validateOnly="true")
    assert dry_run.json["state"] == "ACTIVE"
    assert rest.call("GET", "/appointments/a").json["state"] == "HELD"
    assert rest.confirm("a").headers["Appointment-Outcome"] == "CONFIRMED"
    assert rest.confirm("a").headers["Appointment-Outcome"] == "UNCHANGED"
    rest.call("DELETE", "/appointments/a")
    assert status_and_code(rest.confirm("a")) == (409, "APPOINTMENT_CANCELLED")


def patches_at_once(
    gateways: list[Program], organization: str, patches: Iterable[tuple[str, dict[str, Any]]]
) -> None:
    """Send all patches at the same time, each by another gateway than the one before."""

    async def send() -> None:
        async with ClientSession(connector=TCPConnector(limit=0)) as session:

            async def one(number: int, id: str, body: dict[str, Any]) -> int:
                gateway = gateways[number % len(gateways)]
                url = f"{gateway.url}/api/appointments/{id}"
                async with session.patch(
                    url, json=body, params={"organizationId": organization}
                ) as answer:
                    return answer.status

            statuses = await asyncio.gather(
                *(one(number, *patch) for number, patch in enumerate(patches))
            )
        assert len(statuses) == 1000
        assert set(statuses) == {200}

    asyncio.run(send())


@pytest.fixture
def two_gateways(
    gateway: Program, start_service: StartProgram, start_gateway: StartProgram, database_url: str
) -> list[Program]:
    """Each with a service of its own, so that patches meet in the database."""
    service = start_service(DATABASE_URL=database_url)
    return [gateway, start_gateway(SERVICE_ADDRESS=service.address)]


def test_patches_of_different_fields_all_hold(rest: Client, two_gateways: list[Program]) -> None:
    patches: list[dict[str, Any]] = [
        {"title": "x"},
        {"end": LATER},
        {"createdAt": START},
        {"additionalResourceIds": ["s"]},
        {"attributes": {"a": 1}},
    ]
    names = [f"{number:03}" for number in range(200)]
    batch = [
        {
            "appointment": {
                "organizationId": rest.organization,
                "id": name,
                "start": f"{2100 + number}-01-01T00:00:00Z",
                "end": f"{2100 + number}-01-02T00:00:00Z",
            }
        }
        for number, name in enumerate(names)
    ]
    body = {"requests": batch}
    assert rest.send(
        "POST",
        "/api/appointments:batchUpsert",
        json.dumps(body).encode(),
        Content_Type="application/json",
    ).json["results"]

    def changed(number: int, patch: dict[str, Any]) -> dict[str, Any]:
        return {"end": f"{2100 + number}-01-03T00:00:00Z"} if "end" in patch else patch

    patches_at_once(
        two_gateways,
        rest.organization,
        [(name, changed(number, patch)) for patch in patches for number, name in enumerate(names)],
    )
    stored = rest.call("GET", "/appointments", pageSize=200).json["appointments"]
    assert [one["id"] for one in stored] == names
    for number, one in enumerate(stored):
        assert one["version"] == 6
        wanted = {
            name: value for patch in patches for name, value in changed(number, patch).items()
        }
        assert {name: one[name] for name in wanted} == wanted


def test_patches_of_different_attributes_all_hold(
    rest: Client, two_gateways: list[Program]
) -> None:
    rest.upsert(attributes={"kept": True})
    members = {f"k{number}": number for number in range(1000)}
    patches_at_once(
        two_gateways,
        rest.organization,
        [("a", {"attributes": {name: value}}) for name, value in members.items()],
    )
    stored = rest.call("GET", "/appointments/a").json
    assert stored["attributes"] == {"kept": True, **members}
    assert stored["version"] == 1001
