"""Limits of HTTP: requests that are malformed, too large, too slow, or abandoned."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.gateway.conftest import WRITE, Gateway, running_gateway
from tests.gateway.fake_service import FakeService


async def _raw(gateway: Gateway, request: bytes, *, then_close: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.listening.port)
    try:
        writer.write(request)
        if then_close:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def _problem(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"X-Request-Id" in head
    return json.loads(body)


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/api",
        "/api/",
        "/healthz//x/",
        "/api/appointments/a/b",
        "//api/appointments",
        "/api/appointments%2Fa",
        "/API/appointments",
    ],
)
async def test_an_unknown_path_leads_to_the_docs(rest: Gateway, path: str) -> None:
    answer = await rest.send("GET", path)
    assert (answer.status, answer.json["code"]) == (404, "ROUTE_NOT_FOUND")
    [docs] = re.findall("/api/[a-z]+", answer.json["detail"])
    assert (await rest.send("GET", docs)).status == 200


@pytest.mark.parametrize(
    "path", ["/api/appointments", "/api/appointments/a/history", "/healthz", "/api/docs"]
)
async def test_a_slash_at_the_end_is_named(rest: Gateway, path: str) -> None:
    for method in ("GET", "POST"):
        answer = await rest.send(method, f"{path}/?a=b")
        assert (answer.status, answer.json["code"]) == (404, "ROUTE_NOT_FOUND")
        assert "remove the slash" in answer.json["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/appointments", "GET, HEAD, POST"),
        ("POST", "/api/appointments/a", "DELETE, GET, HEAD, PATCH, PUT"),
        ("GET", "/api/appointments:batchUpsert", "POST"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
        # The id `w:replay`, not the verb.
        ("POST", "/api/webhooks/w%3Areplay", "DELETE, GET, HEAD, PUT"),
    ],
)
async def test_a_method_that_a_path_does_not_take(
    rest: Gateway, method: str, path: str, allowed: str
) -> None:
    answer = await rest.send(method, path)
    assert (answer.status, answer.json["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["Allow"] == allowed
    assert rest.service.calls == 0


async def test_the_absolute_form_of_a_target(rest: Gateway) -> None:
    request = (
        b"GET http://gateway/api/appointments/a%2Fb?organizationId=o HTTP/1.1\r\n"
        b"Host: gateway\r\nConnection: close\r\n\r\n"
    )
    assert (await _raw(rest, request)).startswith(b"HTTP/1.1 200")
    assert rest.service.request.id == "a/b"
    assert rest.service.request.organization_id == "o"


async def _chunks(total: int) -> AsyncIterator[bytes]:
    for _ in range(total // 1000):
        yield b" " * 1000


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_has_a_limit(fake: FakeService, chunked: bool) -> None:
    async with running_gateway(fake, gateway_max_body_bytes=10_000) as gateway:
        answer = await gateway.send(
            "POST",
            "/api/appointments",
            data=_chunks(50_000) if chunked else b" " * 50_000,
            headers={"Content-Type": "application/json"},
        )
        assert (answer.status, answer.json["code"]) == (413, "REQUEST_TOO_LARGE")
        padded = json.dumps(WRITE).encode().ljust(10_000)
        answer = await gateway.send(
            "POST",
            "/api/appointments",
            data=padded,
            headers={"Content-Type": "application/json"},
        )
        assert answer.status == 201


async def test_a_message_that_grows_beyond_grpcs_limit(rest: Gateway) -> None:
    items = [{"appointment": {**WRITE, "attributes": {"a": [1] * 8_000}}}] * 60
    answer = await rest.send(
        "POST",
        "/api/appointments:batchUpsert",
        data=json.dumps({"requests": items}, separators=(",", ":")),
        headers={"Content-Type": "application/json"},
    )
    assert (answer.status, answer.json["code"]) == (413, "REQUEST_TOO_LARGE")
    assert "3145728 bytes" in answer.json["detail"]  # said here, not by gRPC after sending it


async def test_the_limit_of_a_message_is_the_services(fake: FakeService) -> None:
    async with running_gateway(fake, max_message_bytes=1024) as gateway:
        assert (await gateway.upsert()).status == 201
        calls = fake.calls
        answer = await gateway.send(
            "POST", "/api/appointments", json={**WRITE, "attributes": {"a": "x" * 1024}}
        )
    assert (answer.status, answer.json["code"]) == (413, "REQUEST_TOO_LARGE")
    assert "1024 bytes" in answer.json["detail"]
    assert fake.calls == calls


async def test_an_actor_counts_as_a_part_of_the_message(fake: FakeService) -> None:
    async with running_gateway(fake, max_message_bytes=2048) as gateway:
        write = {**WRITE, "attributes": {"a": "x" * 1400}}
        assert (await gateway.send("POST", "/api/appointments", json=write)).status == 201
        calls = fake.calls
        actor = {"X-Actor": "😀" * 256}
        answer = await gateway.send("POST", "/api/appointments", json=write, headers=actor)
    assert (answer.status, answer.json["code"]) == (413, "REQUEST_TOO_LARGE")
    assert fake.calls == calls


_HEAD = (
    b"POST /api/appointments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\n"
)


async def test_a_slow_body_is_given_up(fake: FakeService) -> None:
    async with running_gateway(fake, gateway_body_timeout=0.2) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.listening.port)
        writer.write(_HEAD + b"\r\n{")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 408")
        assert b"Connection: close" in head
        writer.close()


async def test_callers_that_send_slowly_do_not_keep_others_out(fake: FakeService) -> None:
    """With `Expect`, the response 100 shows that the gateway is reading the body."""
    async with running_gateway(fake, gateway_max_in_flight=2) as gateway:
        writers = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.listening.port)
            writer.write(_HEAD + b"Expect: 100-continue\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            writers.append(writer)
        assert (await gateway.upsert()).status == 201
        for writer in writers:
            writer.close()


async def test_a_caller_that_asks_first_is_told_to_go_on(rest: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", rest.listening.port)
    writer.write(_HEAD + b"Expect: 100-continue\r\n\r\n")
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == (
        b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    writer.write(json.dumps(WRITE).encode().ljust(100))
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 201")
    writer.close()


async def test_a_caller_that_asks_first_is_refused_before_it_sends(rest: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", rest.listening.port)
    writer.write(_HEAD.replace(b": 100\r", b": 9999999\r") + b"Expect: 100-continue\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413")
    writer.close()


async def test_a_broken_chunk_is_malformed(rest: Gateway) -> None:
    head = _HEAD.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked")
    problem = _problem(await _raw(rest, head + b"\r\nzz\r\n"))
    assert (problem["status"], problem["code"]) == (400, "MALFORMED_REQUEST")


class _Gate:
    """Holds back the service's responses until it is opened, and shows when one is held."""

    def __init__(self) -> None:
        self.held = asyncio.Semaphore(0)
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        self.held.release()
        await self.open.wait()


async def test_one_call_too_many_is_refused_at_once(fake: FakeService) -> None:
    fake.behave = gate = _Gate()
    async with running_gateway(fake, gateway_max_in_flight=2) as gateway:
        waiting = [asyncio.create_task(gateway.upsert()) for _ in range(2)]
        for _ in waiting:
            await gate.held.acquire()
        answer = await gateway.upsert()
        assert (answer.status, answer.json["code"]) == (429, "OVERLOADED")
        assert answer.headers["Retry-After"] == "1"
        assert (await gateway.send("GET", "/healthz")).status == 200
        gate.open.set()
        assert [(await task).status for task in waiting] == [201, 201]
        assert (await gateway.upsert()).status == 201
        assert gateway.listening.in_flight.count == 0


async def test_a_caller_that_goes_away_cancels_its_call(
    rest: Gateway, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rest.service.behave = gate = _Gate()
    _, writer = await asyncio.open_connection("127.0.0.1", rest.listening.port)
    body = json.dumps(WRITE).encode().ljust(100)
    writer.write(_HEAD + b"\r\n" + body)
    await gate.held.acquire()
    writer.close()
    await asyncio.wait_for(rest.service.cancelled.wait(), 5)
    while rest.listening.in_flight.count:  # noqa: ASYNC110  the count tells nobody
        await asyncio.sleep(0.01)
    assert not caplog.records
    assert "Traceback" not in capsys.readouterr().err


async def test_stopping_finishes_what_is_in_flight(fake: FakeService) -> None:
    fake.behave = gate = _Gate()
    ended = asyncio.Event()

    async def let_go() -> None:
        await gate.held.acquire()
        ended.set()
        await asyncio.sleep(0.2)
        gate.open.set()

    async with asyncio.TaskGroup() as tasks:
        async with running_gateway(fake) as gateway:
            # The client must stay open longer than the gateway, to read the response.
            request = json.dumps(WRITE).encode().ljust(100)
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.listening.port)
            writer.write(_HEAD + b"\r\n" + request)
            tasks.create_task(let_go())
            await ended.wait()
        assert (await reader.readline()).startswith(b"HTTP/1.1 201")
        writer.close()


async def test_stopping_gives_up_after_the_grace(fake: FakeService) -> None:
    fake.behave = gate = _Gate()
    async with asyncio.timeout(5):
        async with running_gateway(fake, gateway_shutdown_grace=0.2) as gateway:
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.listening.port)
            writer.write(_HEAD + b"\r\n" + json.dumps(WRITE).encode().ljust(100))
            await gate.held.acquire()
        writer.close()


async def test_metrics_count_by_method_and_status(fake: FakeService) -> None:
    async with running_gateway(fake) as gateway:
        await gateway.upsert()
        await gateway.send("GET", "/nope/secret")
        url = f"http://127.0.0.1:{gateway.listening.metrics_port}/metrics"
        async with gateway.client.get(url) as response:
            text = await response.text()
    count = "gateway_request_seconds_count"
    assert count + '{method="UpsertAppointment",status="201"} 1.0' in text
    assert count + '{method="unknown",status="404"} 1.0' in text
    assert "gateway_calls_in_flight 0.0" in text
    assert "secret" not in text
