"""The HTTP responses for results and errors of the service."""

import asyncio
from typing import Any

import grpc
import pytest
from aiohttp import ClientTimeout
from appointments.v1.appointment_pb2 import Outcome, TimeRangeConflict
from google.protobuf.any_pb2 import Any as PackedAny
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from tests.gateway.conftest import WRITE, Gateway, running_gateway
from tests.gateway.fake_service import FakeService, Refusal, fake_service


async def test_a_created_appointment(rest: Gateway) -> None:
    answer = await rest.upsert(headers={"X-Request-Id": "r-1"})
    assert answer.status == 201
    assert answer.json["id"] == "a"
    assert answer.json["title"] == ""
    headers = answer.headers
    assert headers["Content-Type"] == "application/json"
    assert headers["ETag"] == '"e7"'
    assert headers["Location"] == "/api/appointments/a"
    assert headers["Appointment-Outcome"] == "CREATED"
    assert headers["Organization-Revision"] == "7"
    assert headers["X-Request-Id"] == "r-1"


@pytest.mark.parametrize("outcome", [Outcome.UPDATED, Outcome.UNCHANGED, Outcome.STALE])
async def test_other_outcomes_are_200(rest: Gateway, outcome: Outcome.ValueType) -> None:
    rest.service.outcome = outcome
    answer = await rest.upsert()
    assert (answer.status, answer.headers["Appointment-Outcome"]) == (200, Outcome.Name(outcome))


async def test_what_was_only_decided_is_not_201(rest: Gateway) -> None:
    answer = await rest.send("POST", "/api/appointments?validateOnly=true", json=WRITE)
    assert (answer.status, answer.headers["Appointment-Outcome"]) == (200, "CREATED")
    assert "Location" not in answer.headers


@pytest.mark.parametrize(
    ("identifier", "organization", "location"),
    [
        ("a/b ö", "default", "/api/appointments/a%2Fb%20%C3%B6"),
        ("..", "default", "/api/appointments/%2E%2E"),
        ("a.b", "x&y z", "/api/appointments/a.b?organizationId=x%26y%20z"),
    ],
)
async def test_location_leads_back(
    rest: Gateway, identifier: str, organization: str, location: str
) -> None:
    body = {**WRITE, "id": identifier, "organizationId": organization}
    answer = await rest.send("POST", "/api/appointments", json=body)
    assert answer.headers["Location"] == location
    await rest.send("GET", location)
    assert rest.service.request.id == identifier


async def test_head_has_no_body(rest: Gateway) -> None:
    answer = await rest.send("HEAD", "/api/appointments/a")
    assert (answer.status, answer.body, answer.headers["ETag"]) == (200, b"", '"e7"')
    assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize("given", ["", "a b", "é", "x" * 129])
async def test_a_request_id_that_cannot_be_passed_on_is_replaced(rest: Gateway, given: str) -> None:
    answer = await rest.upsert(headers={"X-Request-Id": given})
    assert len(answer.headers["X-Request-Id"]) == 32
    assert rest.service.call.context.request_id == answer.headers["X-Request-Id"]


def _failing(code: grpc.StatusCode, reason: str, *details: Any) -> Any:
    status = Status(code=code.value[0], message="because")
    for detail in (ErrorInfo(reason=reason, domain="appointments.v1"), *details):
        packed = PackedAny()
        packed.Pack(detail)
        status.details.append(packed)

    async def fail() -> None:
        raise Refusal(status)

    return fail


async def test_a_conflict(rest: Gateway) -> None:
    conflict = TimeRangeConflict()
    conflict.conflicts.add(id="b", version=2)
    rest.service.behave = _failing(grpc.StatusCode.ALREADY_EXISTS, "TIME_RANGE_CONFLICT", conflict)
    answer = await rest.upsert(headers={"X-Request-Id": "r-1"})
    assert answer.status == 409
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Organization-Revision"] == "7"
    assert answer.json == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "because",
        "code": "TIME_RANGE_CONFLICT",
        "conflicts": [{"id": "b", "version": 2, "resourceIds": []}],
        "moreConflicts": False,
        "alternatives": [],
        "requestId": "r-1",
    }


async def test_a_service_that_is_overloaded(rest: Gateway) -> None:
    rest.service.behave = _failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    answer = await rest.upsert()
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")


async def test_a_crash_of_the_service_leaks_nothing(rest: Gateway) -> None:
    async def crash() -> None:
        raise RuntimeError("password=hunter2")

    rest.service.behave = crash
    answer = await rest.upsert()
    assert (answer.status, answer.json["code"]) == (500, "INTERNAL")
    assert b"hunter2" not in answer.body


async def test_a_method_that_the_service_has_not(rest: Gateway) -> None:
    answer = await rest.send("GET", "/api/changes")
    assert (answer.status, answer.json["code"]) == (501, "UNIMPLEMENTED")


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_an_answer_that_would_have_to_be_inflated_is_not_taken(
    compression: grpc.Compression,
) -> None:
    async with (
        fake_service(compression=compression) as service,
        running_gateway(service) as gateway,
    ):
        answer = await gateway.upsert(timeout=ClientTimeout(10))
        assert (answer.status, answer.json["code"]) == (503, "SERVICE_UNAVAILABLE")
        # Nothing is sent on a stream whose first answer is not taken.
        assert service.calls == 0


async def test_a_service_that_cannot_be_reached(fake: FakeService) -> None:
    async with running_gateway(fake, service_address="127.0.0.1:1") as gateway:
        answer = await gateway.upsert()
        assert (answer.status, answer.json["code"]) == (503, "SERVICE_UNAVAILABLE")
        assert answer.headers["Retry-After"] == "1"
        assert b"127.0.0.1" not in answer.body
        ready = await gateway.send("GET", "/readyz")
        assert (ready.status, ready.headers["Cache-Control"]) == (503, "no-store")
        assert (await gateway.send("GET", "/healthz")).status == 200


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE])
async def test_a_service_that_ends_a_call(rest: Gateway, code: grpc.StatusCode) -> None:
    async def end() -> None:
        raise Refusal(Status(code=code.value[0], message="CANCELLED by peer ipv4:10.0.0.1"))

    rest.service.behave = end
    answer = await rest.upsert()
    assert (answer.status, answer.json["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"
    assert b"10.0.0.1" not in answer.body


@pytest.mark.parametrize("grace", [0, 0.1])
async def test_a_service_that_stops_during_a_call(grace: float) -> None:
    called = asyncio.Event()

    async def hang() -> None:
        called.set()
        await asyncio.Event().wait()

    async with fake_service() as service, running_gateway(service) as gateway:
        service.behave = hang
        sent = asyncio.create_task(gateway.upsert())
        await called.wait()
        await service.server.stop(grace)
        answer = await asyncio.wait_for(sent, 5)
    assert (answer.status, answer.json["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"


async def test_a_service_that_does_not_answer_in_time(fake: FakeService) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    fake.behave = hang
    async with running_gateway(fake, gateway_timeout=0.2) as gateway:
        answer = await gateway.upsert()
    assert (answer.status, answer.json["code"]) == (504, "DEADLINE_EXCEEDED")


async def test_a_service_that_comes_back_is_found_again() -> None:
    async with fake_service() as first, running_gateway(first) as gateway:
        assert (await gateway.upsert()).status == 201
        await first.stop()
        assert (await gateway.upsert()).status == 503
        async with fake_service(port=first.port), asyncio.timeout(5):
            while (await gateway.upsert()).status != 201:  # noqa: ASYNC110  it tells nobody
                await asyncio.sleep(0.05)


async def test_ready_is_what_the_service_says(rest: Gateway) -> None:
    assert (await rest.send("GET", "/readyz")).status == 200
    await rest.service.set_serving(False)
    try:
        answer = await rest.send("GET", "/readyz")
        assert (answer.status, answer.json["code"]) == (503, "SERVICE_UNAVAILABLE")
    finally:
        await rest.service.set_serving(True)
