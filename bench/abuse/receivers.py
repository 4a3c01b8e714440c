"""Hostile receivers of webhooks. The attack also writes what is sent to them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

from aiohttp import ClientSession

from bench.abuse.target import Target

ORGANIZATION = "hostile"
PER_KIND = 20  # as many as an organization may have
CHUNK = b"x" * 65_536

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def _endless_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + CHUNK + b"\r\n")
        await writer.drain()


async def _endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-A: b\r\n" * 1000)
        await writer.drain()


async def _redirects(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 308 Permanent Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def _drips(writer: asyncio.StreamWriter) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + CHUNK:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(1)


async def _silence(_: asyncio.StreamWriter) -> None:
    """Accept the connection and never answer: by https, the TLS handshake."""
    await asyncio.sleep(3600)


KINDS: dict[str, tuple[str, Answer]] = {
    "endless body": ("http", _endless_body),
    "endless headers": ("http", _endless_headers),
    "redirects": ("http", _redirects),
    "a byte a second": ("http", _drips),
    "no TLS": ("https", _silence),
}


async def receivers(target: Target) -> dict[str, Any]:
    """100 webhooks of five kinds: endless bodies, endless headers, redirects to themselves, a
    byte a second, no answer to TLS. Another organization has one that answers."""
    requests: Counter[str] = Counter()
    delays: list[float] = []
    sent: dict[bytes, float] = {}
    servers = []
    urls = {}
    for kind, (scheme, answer) in KINDS.items():
        server = await asyncio.start_server(_serving(kind, answer, requests), "127.0.0.1", 0)
        servers.append(server)
        urls[kind] = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    honest = await asyncio.start_server(_honest(sent, delays), "127.0.0.1", 0)
    servers.append(honest)
    async with ClientSession(f"http://{target.gateway}") as session:
        for number, url in enumerate(urls.values()):
            for _ in range(PER_KIND):
                await _create(session, f"{ORGANIZATION}-{number}", url)
        port = honest.sockets[0].getsockname()[1]
        await _create(session, "honest", f"http://127.0.0.1:{port}/")
        end = perf_counter() + target.seconds
        number = 0
        while perf_counter() < end:
            number += 1
            sent[str(number).encode()] = perf_counter()
            for organization in ("honest", *(f"{ORGANIZATION}-{n}" for n in range(len(KINDS)))):
                await _write(session, organization, number)
            await asyncio.sleep(0.2)
    for server in servers:
        server.close()
    delays.sort()
    return {
        "requests": dict(requests),
        "honest": f"{len(delays)} of {number} delivered",
        "honest p99 s": round(delays[len(delays) * 99 // 100], 2) if delays else None,
    }


async def _create(session: ClientSession, organization: str, url: str) -> None:
    body = {"organizationId": organization, "url": url}
    async with session.post("/api/webhooks", json=body) as response:
        response.raise_for_status()


async def _write(session: ClientSession, organization: str, number: int) -> None:
    day = f"{2030 + number // 365}-01-01T00:00:00Z"
    body = {
        "organizationId": organization,
        "resourceId": str(number),
        "id": str(number),
        "start": day,
        "end": day.replace("T00", "T01"),
    }
    async with session.post("/api/appointments", json=body) as response:
        response.raise_for_status()


def _serving(
    kind: str, answer: Answer, requests: Counter[str]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests[kind] += 1
        with suppress(OSError, asyncio.CancelledError):  # asyncio reports a cancelled one
            await answer(writer)
        writer.close()

    return serve


def _honest(
    sent: dict[bytes, float], delays: list[float]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                number = body.partition(b'"id":"')[2].partition(b'"')[0]
                if number in sent:
                    delays.append(perf_counter() - sent.pop(number))
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        writer.close()

    return serve
