"""A minimal HTTP/1.1 client: one caller on one connection."""

import asyncio
import re
from time import perf_counter
from typing import cast

from bench.calls import CONNECTION_LOST, UNANSWERED, Calls

HEADERS_END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class HttpConnection(asyncio.Protocol):
    """Sends one request after another until there are no more, the first after `delay`.

    Responses must have a Content-Length. `ended` is done after the last response or when the
    connection is lost. `delay` is in seconds.
    """

    def __init__(self, calls: Calls, *, delay: float) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls = calls
        self._delay = delay
        self._transport: asyncio.Transport
        self._started: float | None = None
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._call_after(self._delay)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._end(CONNECTION_LOST)

    def abandon(self) -> None:
        """Count what is in flight as unanswered and close the connection."""
        self._end(UNANSWERED)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        headers, end, body = self._answer.partition(HEADERS_END)
        if not end:
            return
        length = LENGTH.search(headers)
        if length is None:
            raise ValueError(f"a response without Content-Length: {headers!r}")
        if len(body) < int(length[1]) or self._started is None:
            return
        code = headers[len("HTTP/1.1 ") :][:3].decode()
        pause = self._calls.answered(code, self._started, perf_counter())
        self._started = None
        self._answer = b""
        if pause:
            self._call_after(pause)
        else:
            self._call()

    def _call(self) -> None:
        """Send the next request. Close the connection if there is none."""
        if self.ended.done():
            return
        now = perf_counter()
        message = self._calls.next(now)
        if message is None:
            self._transport.close()
            return
        self._started = now
        self._transport.write(message)

    def _call_after(self, pause: float) -> None:
        asyncio.get_running_loop().call_later(pause, self._call)

    def _end(self, code: str) -> None:
        if self.ended.done():
            return
        if self._started is not None:
            self._calls.answered(code, self._started, perf_counter())
        self.ended.set_result(None)
