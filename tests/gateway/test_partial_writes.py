"""PATCH and PUT of an appointment, as the service receives them."""

from typing import Any

import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_pb2 import Outcome
from google.protobuf.json_format import MessageToDict

from gateway.http.bodies import MERGE_PATCH
from tests.gateway.conftest import END, START, WRITE, Answer, Gateway

TARGET = "/api/appointments/a"


async def patch(rest: Gateway, body: object, query: str = "", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await rest.send(
        "PATCH", TARGET + query, json=body, headers={"Content-Type": MERGE_PATCH, **named}
    )


def mask(rest: Gateway) -> list[str]:
    request = rest.service.request
    assert isinstance(request, rpc.UpdateAppointmentRequest)
    assert request.HasField("update_mask")
    return list(request.update_mask.paths)


def fields_of(answer: Answer) -> set[str]:
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    return {error["field"] for error in answer.json["errors"]}


async def test_the_mask_is_what_the_body_holds(rest: Gateway) -> None:
    body = {"title": "x", "start": "2026-01-01 10:00", "additionalResourceIds": ["b"]}
    assert (await patch(rest, body)).status == 201
    assert mask(rest) == ["title", "start", "additional_resource_ids"]
    wanted = rest.service.request.appointment
    assert (wanted.id, wanted.title) == ("a", "x")
    assert wanted.start.ToJsonString() == START
    assert not wanted.HasField("organization_id")
    rest.service.outcome = Outcome.UNCHANGED
    answer = await patch(rest, {})
    assert (answer.status, mask(rest)) == (200, [])
    assert answer.headers["Appointment-Outcome"] == "UNCHANGED"


@pytest.mark.parametrize("media_type", [MERGE_PATCH, "application/json; charset=utf-8"])
async def test_headers_and_query_are_fields(rest: Gateway, media_type: str) -> None:
    headers = {"Content_Type": media_type, "If_Match": '"5"', "Idempotency_Key": '"k"'}
    query = "?allowMissing=true&validateOnly=true&organizationId=%C3%B6"
    answer = await patch(rest, {"title": "x"}, query, **headers)
    assert answer.status == 200  # of a dry run
    request = rest.service.request
    assert (request.etag, request.idempotency_key) == ("5", "k")
    assert request.allow_missing
    assert request.validate_only
    assert request.appointment.organization_id == "ö"


async def test_null_clears_what_may_be_cleared(rest: Gateway) -> None:
    cleared = {
        "resourceId": "resource_id",
        "additionalResourceIds": "additional_resource_ids",
        "title": "title",
        "attributes": "attributes",
        "createdAt": "created_at",
        "updatedAt": "updated_at",
        "holdUntil": "hold_until",
    }
    await patch(rest, dict.fromkeys(cleared))
    assert mask(rest) == list(cleared.values())
    assert MessageToDict(rest.service.request.appointment) == {"id": "a"}
    for name in ("start", "end", "id", "organizationId", "etag", "state"):
        assert fields_of(await patch(rest, {name: None})) == {name}


async def test_attributes_are_a_patch_of_their_own(rest: Gateway) -> None:
    attributes = {"a": None, "b": {"c": None, "d": [1, None]}, "e": {}}
    await patch(rest, {"attributes": attributes, "title": "x"})
    assert mask(rest) == ["title"]
    request = rest.service.request
    assert MessageToDict(request.attributes_patch) == attributes
    assert not request.appointment.HasField("attributes")
    await patch(rest, {"attributes": {}})
    assert (mask(rest), rest.service.request.HasField("attributes_patch")) == ([], True)
    wrongs: list[object] = [[], "x", 1, False, {"a": "\0"}]
    for wrong in wrongs:
        assert fields_of(await patch(rest, {"attributes": wrong})) == {"attributes"}


async def test_what_only_the_service_sets_is_ignored(rest: Gateway) -> None:
    await patch(rest, {"state": "CANCELLED", "version": 3, "revision": "9", "etag": "5"})
    assert mask(rest) == []
    assert MessageToDict(rest.service.request.appointment) == {"id": "a", "etag": "5"}


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_the_url_says_what_is_written(rest: Gateway, method: str) -> None:
    async def send(target: str, **body: Any) -> Answer:
        return await rest.send(method, target, json={"start": START, "end": END, **body})

    for target, body in (
        (TARGET, {"id": "a"}),
        (TARGET, {"organizationId": "o"}),
        (f"{TARGET}?organizationId=o", {"organizationId": "o", "id": "a"}),
        ("/api/appointments/7", {"id": 7}),
    ):
        assert (await send(target, **body)).status == 201
        wanted = rest.service.request.appointment
        assert (target.partition("?")[0].rpartition("/")[2]) == wanted.id
        assert wanted.organization_id == ("o" if "o" in str(body.values()) else "")
    for target, body, field in (
        (TARGET, {"id": "b"}, "id"),
        (TARGET, {"id": ""}, "id"),
        (f"{TARGET}?organizationId=o", {"organizationId": "p"}, "organizationId"),
        (f"{TARGET}?organizationId=o&organizationId=o", {}, "organizationId"),
        (f"{TARGET}?id=a", {}, "id"),
        ("/api/appointments/%FF", {}, "id"),
    ):
        assert fields_of(await send(target, **body)) == {field}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"titel": "x"}, "titel"),
        ({"updateMask": "title"}, "updateMask"),
        ({"allowMissing": True}, "allowMissing"),
        ({"attributesPatch": {}}, "attributesPatch"),
        ({"start": "soon"}, "start"),
        ({"title": 5}, "title"),
        ([{"op": "remove", "path": "/title"}], ""),
        ("x", ""),
    ],
)
async def test_what_is_no_patch_is_refused(rest: Gateway, body: object, field: str) -> None:
    assert fields_of(await patch(rest, body)) == {field}
    assert rest.service.calls == 0


@pytest.mark.parametrize("query", ["updateMask=title", "attributesPatch=x", "createOnly=true"])
async def test_what_the_body_says_is_no_query_parameter(rest: Gateway, query: str) -> None:
    assert fields_of(await patch(rest, {}, f"?{query}")) == {query.partition("=")[0]}


async def test_only_if_match_is_a_condition_of_a_patch(rest: Gateway) -> None:
    assert fields_of(await patch(rest, {}, If_None_Match="*")) == {"If-None-Match"}


async def test_other_patches_are_told_which_is_taken(rest: Gateway) -> None:
    for kind in ("application/json-patch+json", "text/plain", f"{MERGE_PATCH}; charset=latin-1"):
        answer = await patch(rest, {}, Content_Type=kind)
        assert (answer.status, answer.json["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
        assert answer.headers["Accept-Patch"] == "application/merge-patch+json, application/json"
    answer = await rest.send("PUT", TARGET, json=WRITE, headers={"Content-Type": MERGE_PATCH})
    assert (answer.status, answer.headers.get("Accept-Patch")) == (415, None)


async def test_a_put_is_an_upsert(rest: Gateway) -> None:
    headers = {"If-None-Match": "*", "Idempotency-Key": "k"}
    created = await rest.send("PUT", f"{TARGET}?organizationId=o", json=WRITE, headers=headers)
    assert isinstance(rest.service.request, rpc.UpsertAppointmentRequest)
    assert rest.service.request.create_only
    assert rest.service.request.idempotency_key == "k"
    assert created.status == 201
    assert created.headers["Location"] == f"{TARGET}?organizationId=o"
    assert created.headers["ETag"] == '"e7"'
    assert created.headers["Appointment-Outcome"] == "CREATED"
    rest.service.outcome = Outcome.UPDATED
    updated = await rest.send("PUT", TARGET, json=WRITE, headers={"If-Match": '"1", "2"'})
    assert (updated.status, updated.headers["Location"]) == (200, TARGET)
    assert rest.service.request.etag == "1"


async def test_a_confirmation_takes_the_headers_that_its_fields_have(rest: Gateway) -> None:
    headers = {"If-Match": '"5"', "Idempotency-Key": "k"}
    answer = await rest.send(
        "POST", f"{TARGET}:confirm?organizationId=o&validateOnly=true", headers=headers
    )
    assert (answer.status, answer.headers["Appointment-Outcome"]) == (200, "CONFIRMED")
    request = rest.service.request
    assert (request.id, request.etag, request.idempotency_key) == ("a", "5", "k")
    assert request.validate_only


async def test_the_methods_of_an_appointment_are_listed(rest: Gateway) -> None:
    answer = await rest.send("POST", TARGET, json=WRITE)
    assert answer.status == 405
    assert answer.headers["Allow"] == "DELETE, GET, HEAD, PATCH, PUT"
