"""Requests that a proxy could read in another way, so that one is hidden in another."""

import asyncio

import pytest

from tests.gateway.conftest import Gateway
from tests.gateway.raw_http import connection

POST = "POST /api/appointments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET = "GET /healthz HTTP/1.1\r\nHost: x\r\n"
LENGTH = "Content-Length: 2\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
HIDDEN = "GET /healthz HTTP/1.1\r\nHost: hidden\r\n\r\n"


def of_length(*headers: str) -> str:
    return POST + "".join(f"{header}\r\n" for header in headers) + "\r\n{}"


def of_chunks(body: str = "2\r\n{}\r\n0\r\n\r\n", *, headers: str = CHUNKED) -> str:
    return f"{POST}{headers}\r\n{body}"


AMBIGUOUS = {
    "length and chunks": of_chunks("0\r\n\r\n", headers=f"Content-Length: 6\r\n{CHUNKED}"),
    "chunks and length": of_chunks("0\r\n\r\n", headers=f"{CHUNKED}Content-Length: 6\r\n"),
    "two lengths": of_length("Content-Length: 2", "Content-Length: 5"),
    "the same length twice": of_length("Content-Length: 2", "Content-Length: 2"),
    "a list of lengths": of_length("Content-Length: 2, 2"),
    "a length with plus": of_length("Content-Length: +2"),
    "a length with minus": of_length("Content-Length: -2"),
    "a length with an underscore": of_length("Content-Length: 0_2"),
    "a hexadecimal length": of_length("Content-Length: 0x2"),
    "a length of other digits": of_length("Content-Length: \u0662"),
    "a length with a fraction": of_length("Content-Length: 2.0"),
    "a length with a space": of_length("Content-Length: 0 2"),
    "no length": of_length("Content-Length:"),
    "a length beyond 64 bits": of_length(f"Content-Length: {2**64 + 2}"),
    "a folded header": of_length("X-A: b\r\n c", "Content-Length: 2"),
    "a folded coding": of_chunks(headers="Transfer-Encoding:\r\n chunked\r\n"),
    "a space before the colon": of_length("Content-Length : 2"),
    "a tab before the colon": of_length("Content-Length\t: 2"),
    "a space before the coding's colon": of_chunks(headers="Transfer-Encoding : chunked\r\n"),
    "a space before the first header": of_length("Content-Length: 2").replace("Host", " Host"),
    "only line feeds": of_length("Content-Length: 2").replace("\r\n", "\n"),
    "one line feed": of_length("X-A: b\nContent-Length: 2"),
    "a carriage return": of_length("X-A: b\rContent-Length: 5", "Content-Length: 2"),
    "NUL in a header": of_length("X-A: \0b", "Content-Length: 2"),
    "NUL in a name": of_length("X\0A: b", "Content-Length: 2"),
    "a header without a colon": of_length("bad", "Content-Length: 2"),
    "a header without a name": of_length(": bad", "Content-Length: 2"),
    "a name beyond ASCII": of_length("\u00e9: b", "Content-Length: 2"),
    "chunked, identity": of_chunks(headers="Transfer-Encoding: chunked, identity\r\n"),
    "identity, chunked": of_chunks(headers="Transfer-Encoding: identity, chunked\r\n"),
    "gzip, chunked": of_chunks(headers="Transfer-Encoding: gzip, chunked\r\n"),
    "chunked, chunked": of_chunks(headers="Transfer-Encoding: chunked, chunked\r\n"),
    "chunked twice": of_chunks(headers=CHUNKED * 2),
    "chunked and identity": of_chunks(headers=f"{CHUNKED}Transfer-Encoding: identity\r\n"),
    "identity and a length": of_length("Transfer-Encoding: identity", "Content-Length: 2"),
    "xchunked": of_chunks(headers="Transfer-Encoding: xchunked\r\n"),
    "a quoted coding": of_chunks(headers='Transfer-Encoding: "chunked"\r\n'),
    "a coding after a vertical tab": of_chunks(headers="Transfer-Encoding: \x0bchunked\r\n"),
    "a coding with a parameter": of_chunks(headers="Transfer-Encoding: chunked;a=b\r\n"),
    "chunks in HTTP/1.0": of_chunks().replace("1.1", "1.0"),
    "chunks and a length in HTTP/1.0": of_chunks(headers=CHUNKED + LENGTH).replace("1.1", "1.0"),
    "a line feed in a chunk extension": of_chunks("2;\n{}\r\n0\r\n\r\n"),
    "a carriage return in a chunk extension": of_chunks("2;a\rb\r\n{}\r\n0\r\n\r\n"),
    "a chunk size with plus": of_chunks("+2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size with minus": of_chunks("-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size with 0x": of_chunks("0x2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size with an underscore": of_chunks("0_2\r\n{}\r\n0\r\n\r\n"),
    "a space before a chunk size": of_chunks(" 2\r\n{}\r\n0\r\n\r\n"),
    "a space after a chunk size": of_chunks("2 \r\n{}\r\n0\r\n\r\n"),
    "no chunk size": of_chunks("\r\n{}\r\n0\r\n\r\n"),
    "a chunk size beyond 64 bits": of_chunks("f" * 17 + "2\r\n{}\r\n0\r\n\r\n"),
    "chunks with line feeds": of_chunks("2\n{}\n0\n\n"),
    "a chunk that is longer than its size": of_chunks("2\r\n{}x\r\n0\r\n\r\n"),
    "a chunk without an end": of_chunks("2\r\n{}0\r\n\r\n"),
    "a length as trailer": of_chunks("2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n"),
    "an invalid trailer": of_chunks("2\r\n{}\r\n0\r\nbad trailer\r\n\r\n"),
    "two hosts": GET + "Host: y\r\n\r\n",
    "no host": "GET /healthz HTTP/1.1\r\n\r\n",
    "a list of hosts": "GET /healthz HTTP/1.1\r\nHost: x, y\r\n\r\n",
    "a host with a space": "GET /healthz HTTP/1.1\r\nHost: x y\r\n\r\n",
    "a host with a user": "GET /healthz HTTP/1.1\r\nHost: a@x\r\n\r\n",
    "a URL of another host": "GET http://y/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a URL with a user": "GET http://a@x/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a URL with an invalid port": "GET http://x:y/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the URL": "GET /health z HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the URL": "GET /healthz\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "tabs in the first line": "GET\t/healthz\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/1.2": "GET /healthz HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/1.1x": "GET /healthz HTTP/1.1x\r\nHost: x\r\n\r\n",
    "HTTP/0.9": "GET /healthz\r\n\r\n",
}


@pytest.mark.parametrize("form", AMBIGUOUS)
async def test_an_ambiguous_request_is_refused_and_what_follows_is_not_read(
    rest: Gateway, form: str
) -> None:
    async with connection(rest) as sent:
        answer = await sent.send((AMBIGUOUS[form] + HIDDEN).encode())
        assert (answer.status, answer.problem["code"]) == (400, "MALFORMED_REQUEST")
        assert answer.headers["Connection"] == "close"
        assert await sent.ended()
    assert rest.service.calls == 0


@pytest.mark.parametrize(
    "form",
    [
        of_chunks("2;a=b\r\n{}\r\n0\r\n\r\n"),  # RFC 9112, section 7.1.1: ignored
        of_chunks(headers="Transfer-Encoding: CHUNKED\r\n"),
        "GET http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET HTTP://X/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost:\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: [::1]:3000\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: xn--4ca.example:80\r\n\r\n",
    ],
)
async def test_other_unusual_requests_are_answered_and_so_is_what_follows(
    rest: Gateway, form: str
) -> None:
    async with connection(rest) as sent:
        assert (await sent.send((form + HIDDEN).encode())).status in {200, 201}
        async with asyncio.timeout(5):
            assert (await sent.answer()).status == 200


async def test_a_request_for_another_protocol_is_answered_and_ends_the_connection(
    rest: Gateway,
) -> None:
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
    async with connection(rest) as sent:
        assert (await sent.send((GET + upgrade + "\r\n").encode())).status == 200
        assert await sent.ended()
