"""The HTTP server: aiohttp's, with limits, and with problems for requests it cannot parse."""

import asyncio
from dataclasses import dataclass

from aiohttp.web import BaseRequest, RequestHandler, Server, StreamResponse

from gateway.http.handler import HttpHandler
from gateway.http.unreadable import MAX_HEADER_BYTES, MAX_HEADERS, MAX_URL_BYTES

LINGERING_TIME = 5.0
"""Seconds for which the rest of a refused body is read, so that its sender reads the response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds that a connection has: `headers` for its TLS handshake, `idle` until a request
    begins, then `headers` until its headers are complete."""

    idle: float
    headers: float


class HttpServer(Server):
    """aiohttp's server without its application and router (docs/decisions/0013).

    A request is cancelled when its caller closes the connection.
    """

    def __init__(
        self, handler: HttpHandler, timeouts: Timeouts, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(handler, handler_cancellation=True, loop=loop)
        self._handler = handler
        self._timeouts = timeouts

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._handler, self._timeouts, self._loop)


class _Connection(RequestHandler):
    """A connection with a timeout for slow headers, and problems for unreadable requests.

    aiohttp has one timeout for idle connections and for headers that arrive slowly.
    """

    __slots__ = ("_begun", "_handler", "_head_timeout", "_head_timer")

    def __init__(
        self,
        server: HttpServer,
        handler: HttpHandler,
        timeouts: Timeouts,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=timeouts.idle,
            lingering_time=LINGERING_TIME,
            max_line_size=MAX_URL_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]
        )
        self._handler = handler
        self._head_timeout = timeouts.headers
        self._begun = False
        self._head_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # The headers are incomplete while aiohttp's loop still waits for a request, or has not
        # begun to wait and no request is queued.
        self._begun = self._begun or bool(self._messages)
        waits = self._waiter is not None and not self._waiter.done()
        if self._begun and not waits:
            self._stop_head_timeout()
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_timeout, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timeout()
        super().connection_lost(exc)

    def _stop_head_timeout(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,  # noqa: ARG002
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("a response has begun already")
        return self._handler.respond_to_unreadable(request, exc)
