"""Malformed HTTP: each error has its own status and detail."""

import pytest

from tests.gateway.conftest import Gateway
from tests.gateway.raw_http import connection, request

HOST = b"\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "code", "expected"),
    [
        (request("GET /" + "a" * 9000), 414, "URI_TOO_LONG", "8192 bytes"),
        (request("GET /?" + "a" * 9000), 414, "URI_TOO_LONG", "8192 bytes"),
        (request("GET /healthz", "X: " + "x" * 20_000), 431, "HEADERS_TOO_LARGE", "8190 bytes"),
        (request("GET /healthz", "X: /" + "x" * 8190), 431, "HEADERS_TOO_LARGE", "8190 bytes"),
        (request("GET /healthz", "x" * 9000 + ": 1"), 431, "HEADERS_TOO_LARGE", "8190 bytes"),
        (
            request("GET /healthz", *(f"X-{number}: 1" for number in range(200))),
            431,
            "HEADERS_TOO_LARGE",
            "at most 128 headers",
        ),
        (request("BREW /api/appointments"), 501, "METHOD_NOT_IMPLEMENTED", "BREW"),
        (request("get /api/appointments"), 501, "METHOD_NOT_IMPLEMENTED", "get"),
        (request("GETX /it's?x='"), 501, "METHOD_NOT_IMPLEMENTED", "GETX"),
        (request("DESCRIBE /healthz"), 501, "METHOD_NOT_IMPLEMENTED", "DESCRIBE"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "MALFORMED_REQUEST", "Host is missing"),
        (
            request("GET /", "Host: y"),
            400,
            "MALFORMED_REQUEST",
            "header Host must not be repeated",
        ),
        (b"GET / HTTP/9.9" + HOST, 400, "MALFORMED_REQUEST", "version"),
        (b"nonsense" + HOST, 400, "MALFORMED_REQUEST", "not HTTP"),
        (b"FOO", 400, "MALFORMED_REQUEST", "not HTTP"),
        (b"\x16\x03\x01", 400, "MALFORMED_REQUEST", "TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "MALFORMED_REQUEST", "HTTP/2"),
        (b"GET a b HTTP/1.1" + HOST, 400, "MALFORMED_REQUEST", "url"),
        (b"GET /\x01 HTTP/1.1" + HOST, 400, "MALFORMED_REQUEST", "url"),
        (request("GET /", "no colon"), 400, "MALFORMED_REQUEST", "header"),
        (request("GET /", "Content-Length: x"), 400, "MALFORMED_REQUEST", "Content-Length"),
        (
            request("POST /", "Content-Length: 1", "Transfer-Encoding: chunked"),
            400,
            "MALFORMED_REQUEST",
            "Content-Length",
        ),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else "",
)
async def test_every_fault_is_told_apart(
    rest: Gateway, sent: bytes, status: int, code: str, expected: str
) -> None:
    async with connection(rest) as caller:
        answer = await caller.send(sent)
        problem = answer.problem
        assert (answer.status, problem["code"]) == (status, code)
        assert expected in problem["detail"]
        assert "b'" not in problem["detail"]
        assert answer.headers["Connection"] == "close"
        assert await caller.ended()


async def test_what_is_long_but_within_the_limits_is_read(rest: Gateway) -> None:
    long = request("GET /healthz?" + "x" * 8000, "X: " + "x" * 8000)
    many = request("GET /healthz", *(f"X-{number}: 1" for number in range(120)))
    async with connection(rest) as caller:
        assert (await caller.send(long)).status == 200
        assert (await caller.send(many)).status == 200


async def test_a_known_method_that_the_path_does_not_take_stays_a_405(rest: Gateway) -> None:
    async with connection(rest) as caller:
        for method in ("PATCH", "PROPFIND", "OPTIONS", "TRACE"):
            answer = await caller.send(request(f"{method} /api/appointments"))
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, POST")
