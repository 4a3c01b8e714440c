"""Compression of responses."""

import gzip
import json
import threading
import zlib

import pytest

from tests.gateway.conftest import WRITE, Gateway, running_gateway
from tests.gateway.fake_service import FakeService
from tests.gateway.raw_http import Connection, RawAnswer, connection, request

PLAIN_LIMIT = 1024
GZIP = "Accept-Encoding: gzip"
# The service of these tests returns the id that was asked for.
LARGE = f"/api/appointments/{'a' * 2000}"


def inflated(answer: RawAnswer) -> bytes:
    assert answer.headers["Content-Encoding"] == "gzip"
    return gzip.decompress(answer.body)


async def get(sent: Connection, target: str, *headers: str, head_only: bool = False) -> RawAnswer:
    method = "HEAD" if head_only else "GET"
    return await sent.send(request(f"{method} {target}", *headers), head_only=head_only)


@pytest.mark.parametrize(
    "accepted",
    [
        "gzip",
        "gzip, deflate, br, zstd",
        "br;q=1.0, GZIP;q=0.001",
        "x-gzip",
        "*",
        "br, *;q=0.1",
        "identity;q=0.5, gzip",
        "identity;q=0, *",
    ],
)
async def test_gzip_is_used_if_it_is_accepted(rest: Gateway, accepted: str) -> None:
    async with connection(rest) as sent:
        plain = await get(sent, LARGE)
        answer = await get(sent, LARGE, f"Accept-Encoding: {accepted}")
    assert inflated(answer) == plain.body
    assert len(answer.body) < len(plain.body) / 4
    assert answer.headers["Content-Type"] == plain.headers["Content-Type"] == "application/json"
    assert answer.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    "accepted",
    [
        "",
        "br",
        "identity",
        "gzip;q=0",
        "gzip; q=0.000",
        "gzip;q=0, *",
        "*;q=0",
        "identity, gzip;q=0.5",
        "gzip;q=much",
        "gzipped",
    ],
)
async def test_gzip_is_not_used_unless_it_is_accepted(rest: Gateway, accepted: str) -> None:
    async with connection(rest) as sent:
        answer = await get(sent, LARGE, f"Accept-Encoding: {accepted}")
    assert answer.headers["Content-Encoding"] is None
    assert json.loads(answer.body)["id"] == "a" * 2000
    assert answer.headers["Vary"] == "Accept-Encoding"


async def test_several_headers_are_one_list(rest: Gateway) -> None:
    async with connection(rest) as sent:
        assert inflated(await get(sent, LARGE, "Accept-Encoding: br", GZIP))


async def test_small_bodies_are_not_compressed(rest: Gateway) -> None:
    async with connection(rest) as sent:
        others = len((await get(sent, "/api/appointments/a")).body) - 1
        path = f"/api/appointments/{'a' * (PLAIN_LIMIT - others)}"
        answer = await get(sent, path, GZIP)
        assert len(answer.body) == PLAIN_LIMIT
        assert answer.headers["Content-Encoding"] is answer.headers["Vary"] is None
        assert len(inflated(await get(sent, path + "a", GZIP))) == PLAIN_LIMIT + 1


async def test_problems_are_compressed(rest: Gateway) -> None:
    body = json.dumps({**WRITE, **{f"wrong{number}": 1 for number in range(100)}}).encode()
    head = request(
        "POST /api/appointments",
        GZIP,
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    async with connection(rest) as sent:
        answer = await sent.send(head + body)
    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")
    problem = json.loads(inflated(answer))
    assert len(problem["errors"]) == 100
    assert problem["requestId"] == answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    "path", ["/api/openapi.json", "/api/docs/swagger-ui.css", "/api/docs/swagger-ui-bundle.js"]
)
async def test_large_pages_are_compressed_once_and_outside_of_the_event_loop(
    fake: FakeService, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    real = zlib.compress

    def observed(*arguments: int) -> bytes:
        threads.append(threading.current_thread())
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(zlib, "compress", observed)
    async with running_gateway(fake) as rest, connection(rest) as sent:
        plain = await get(sent, path)
        for _ in range(2):
            assert inflated(await get(sent, path, GZIP)) == plain.body
        assert inflated(await get(sent, LARGE, GZIP))
    assert threads[0] is not threading.main_thread()
    assert threads[1:] == [threading.main_thread()], "not worth a thread"


async def test_head_has_the_headers_of_get(rest: Gateway) -> None:
    async with connection(rest) as sent:
        answer = await get(sent, LARGE, GZIP)
        head = await get(sent, LARGE, GZIP, head_only=True)
    for name in ("Content-Encoding", "Content-Length", "Vary", "ETag"):
        assert head.headers[name] == answer.headers[name] is not None


async def test_a_compressed_appointment_has_a_strong_tag_of_its_own(rest: Gateway) -> None:
    async with connection(rest) as sent:
        assert (await get(sent, LARGE)).headers["ETag"] == '"e7"'
        answer = await get(sent, LARGE, GZIP)
        assert answer.headers["ETag"] == '"e7-gzip"'
        assert json.loads(inflated(answer))["etag"] == "e7"


@pytest.mark.parametrize(
    ("path", "accepted", "expected"),
    [
        (LARGE, "gzip", '"e7-gzip"'),
        (LARGE, "identity", '"e7"'),
        ("/api/appointments/a", "gzip", '"e7"'),
    ],
)
async def test_a_304_has_the_headers_that_the_200_would_have(
    rest: Gateway, path: str, accepted: str, expected: str
) -> None:
    async with connection(rest) as sent:
        for known in ('"e7"', '"e7-gzip"', 'W/"e7-gzip"'):
            answer = await get(
                sent, path, f"Accept-Encoding: {accepted}", f"If-None-Match: {known}"
            )
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["ETag"] == expected
            assert answer.headers["Vary"] == "Accept-Encoding"
            assert answer.headers["Content-Encoding"] is None
        assert (await get(sent, path, 'If-None-Match: "e8-gzip"')).status == 200


async def test_a_write_takes_the_tag_of_a_compressed_response(rest: Gateway) -> None:
    answer = await rest.upsert(headers={"If-Match": '"e7-gzip"'})
    assert answer.status == 201
    assert rest.service.request.etag == "e7"
