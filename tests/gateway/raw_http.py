"""Raw HTTP: requests that no client library would send."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import parse_headers
from io import BytesIO
from typing import Any

from tests.gateway.conftest import Gateway

PATIENCE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RawAnswer:
    status: int
    headers: Any
    body: bytes

    @property
    def problem(self) -> Any:
        """Return the problem in the body, and check what must hold for every problem."""
        assert self.headers["Content-Type"] == "application/problem+json"
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem["requestId"] == self.headers["X-Request-Id"]
        return problem


@dataclass(frozen=True, slots=True)
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes, *, head_only: bool = False) -> RawAnswer:
        """Send bytes and read one response. `head_only` is for responses to HEAD."""
        self.writer.write(data)
        return await self.answer(head_only=head_only)

    async def answer(self, *, head_only: bool = False) -> RawAnswer:
        async with asyncio.timeout(PATIENCE):
            status_line = await self.reader.readline()
            head = b""
            while not head.endswith(b"\r\n\r\n") and head != b"\r\n":
                line = await self.reader.readline()
                assert line, "the connection ended within a head"
                head += line
            headers = parse_headers(BytesIO(head))
            length = 0 if head_only else int(headers.get("Content-Length", 0))
            body = await self.reader.readexactly(length)
        return RawAnswer(status=int(status_line.split()[1]), headers=headers, body=body)

    async def ended(self) -> bool:
        """Return whether the gateway closes the connection without sending more."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read() == b""


@asynccontextmanager
async def connection(gateway: Gateway) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.listening.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


def request(line: str, *headers: str) -> bytes:
    """Return the head of a request, including `Host`."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", *headers, "", ""]).encode()
