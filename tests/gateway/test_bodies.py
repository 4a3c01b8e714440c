"""Requests without a defined body: refused only if they have one."""

import asyncio

import pytest

from tests.gateway.conftest import Gateway, running_gateway
from tests.gateway.fake_service import FakeService
from tests.gateway.raw_http import connection, request

CHUNKED = "Transfer-Encoding: chunked"
OPERATION = "/api/operations/0196f0c0-0000-7000-8000-000000000000"
WITHOUT_BODY = [
    "GET /api/appointments/a",
    "HEAD /api/appointments/a",
    "GET /api/appointments",
    "GET /api/changes",
    "DELETE /api/appointments/a",
    "POST /api/webhooks/w:rotateSecret",
    f"GET {OPERATION}",
    "GET /api/operations",
    "GET /healthz",
    "GET /readyz",
    "GET /api/docs",
    "GET /api/openapi.json",
]
AFTERWARDS = request("GET /healthz")


@pytest.mark.parametrize("line", WITHOUT_BODY)
@pytest.mark.parametrize(
    "headers",
    [[CHUNKED], ["Content-Length: 0"], [CHUNKED, "Expect: 100-continue"]],
    ids=["chunked", "length", "expected"],
)
async def test_no_bytes_are_no_body(rest: Gateway, line: str, headers: list[str]) -> None:
    head_only = line.startswith("HEAD")
    async with connection(rest) as plain:
        usual = await plain.send(request(line), head_only=head_only)
    assert usual.status != 400
    async with connection(rest) as sent:
        end = b"0\r\n\r\n" if CHUNKED in headers else b""
        answer = await sent.send(request(line, *headers) + end, head_only=head_only)
        assert answer.status == usual.status
        assert answer.body == usual.body or b"requestId" in usual.body
        assert (await sent.send(AFTERWARDS)).status == 200


@pytest.mark.parametrize("line", WITHOUT_BODY)
@pytest.mark.parametrize(
    ("header", "body"), [(CHUNKED, b"1\r\n{\r\n0\r\n\r\n"), ("Content-Length: 2", b"{}")]
)
async def test_bytes_are_refused(rest: Gateway, line: str, header: str, body: bytes) -> None:
    head_only = line.startswith("HEAD")
    async with connection(rest) as sent:
        answer = await sent.send(request(line, header) + body, head_only=head_only)
        assert answer.status == 400
        if not head_only:
            assert answer.problem["code"] == "MALFORMED_REQUEST"
        assert (await sent.send(AFTERWARDS)).status == 200
    assert rest.service.calls == 0


async def test_the_end_of_a_chunked_body_may_come_later(rest: Gateway) -> None:
    async with connection(rest) as sent:
        sent.writer.write(request("DELETE /api/appointments/a", CHUNKED))
        await asyncio.sleep(0.05)
        assert rest.service.calls == 0
        assert (await sent.send(b"0\r\n\r\n")).status == 200
        assert (await sent.send(AFTERWARDS)).status == 200


async def test_the_end_of_a_chunked_body_is_waited_for_as_long_as_a_body(
    fake: FakeService,
) -> None:
    async with (
        running_gateway(fake, gateway_body_timeout=0.2) as gateway,
        connection(gateway) as sent,
    ):
        answer = await sent.send(request("GET /api/appointments/a", CHUNKED))
        assert (answer.status, answer.problem["code"]) == (408, "REQUEST_TIMEOUT")
        assert await sent.ended()
    assert fake.calls == 0


async def test_who_asks_before_sending_no_body_is_told_to_go_on(rest: Gateway) -> None:
    """The caller can then send the rest of it."""
    asking = request("GET /api/appointments/a", CHUNKED, "Expect: 100-continue")
    async with connection(rest) as sent:
        assert (await sent.send(asking)).status == 100
        assert (await sent.send(b"0\r\n\r\n")).status == 200


async def test_who_asks_without_a_body_is_answered_at_once(rest: Gateway) -> None:
    asking = request("GET /api/appointments/a", "Expect: 100-continue")
    async with connection(rest) as sent:
        assert (await sent.send(asking)).status == 200


async def test_who_asks_before_sending_a_body_is_refused_before_it_sends(rest: Gateway) -> None:
    asking = request("DELETE /api/appointments/a", "Content-Length: 5", "Expect: 100-continue")
    async with connection(rest) as sent:
        assert (await sent.send(asking)).status == 400
