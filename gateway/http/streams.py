"""Open event streams: their limit, how they are sent, and how they end."""

import asyncio
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from http import HTTPStatus

from aiohttp import hdrs
from aiohttp.web import StreamResponse

from gateway.http.context import RequestContext
from gateway.http.responses import add_common_headers

MEDIA_TYPE = "text/event-stream"
FINAL_READ_TIMEOUT = 1.0
"""Seconds that a client has to read the rest of a stream that ends."""

CHUNK_BYTES = 16 * 1024
"""Data is written in chunks of this size, each after the previous one fits into the buffers."""
SOCKET_BUFFER_BYTES = 64 * 1024
"""The kernel buffers up to twice as much unread data; its default is some megabytes."""

# Ranges in milliseconds. The delay is random, so that clients that lost their streams together
# do not reconnect together.
_RECONNECT_DELAY = (1_000, 3_000)
_LONG_RECONNECT_DELAY = (5_000, 15_000)


class EndReason(StrEnum):
    """Why a stream ended, for logs and metrics."""

    CALLER_GONE = "caller_gone"
    SLOW_READER = "slow_reader"
    SERVICE_UNAVAILABLE = "service_unavailable"
    REFUSED = "refused"
    OVERLOADED = "overloaded"
    STOPPING = "stopping"


_END_COMMENTS = {
    EndReason.SERVICE_UNAVAILABLE: b": the service does not answer\n\n",
    EndReason.REFUSED: b": the service refuses to go on\n\n",
    EndReason.OVERLOADED: b": too many streams are open\n\n",
    EndReason.STOPPING: b": the gateway stops\n\n",
}


class SlowReaderError(Exception):
    """A client has read nothing for too long."""


class TooManyStreamsError(Exception):
    """The maximum number of streams is open."""


class Streams:
    """The open streams, limited in number."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ends: set[asyncio.Timeout] = set()
        self._closed = False

    @property
    def count(self) -> int:
        return len(self._ends)

    @contextmanager
    def slot(self, end: asyncio.Timeout) -> Iterator[None]:
        """Occupy a slot during the block. `close` makes the timeout `end` expire.

        Raises `TooManyStreamsError`.
        """
        if len(self._ends) >= self._limit:
            raise TooManyStreamsError
        self._ends.add(end)
        if self._closed:
            end.reschedule(0)
        try:
            yield
        finally:
            self._ends.discard(end)

    def close(self) -> None:
        """End all streams, including those that begin later."""
        self._closed = True
        for end in self._ends:
            end.reschedule(0)


class EventStream:
    """One stream of server-sent events (WHATWG HTML, section 9.2).

    Some 200 KB of unread data are buffered. Then sending waits, for at most `reader_timeout`
    seconds.
    """

    def __init__(self, context: RequestContext, *, reader_timeout: float) -> None:
        self.response = StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: MEDIA_TYPE,
                hdrs.CACHE_CONTROL: "no-store",
                hdrs.VARY: hdrs.ACCEPT,
                "X-Accel-Buffering": "no",  # else a proxy buffers events
            }
        )
        add_common_headers(self.response, context)
        self.ended = False
        self._context = context
        self._reader_timeout = reader_timeout
        self._sending = False

    async def begin(self, reconnect_delay: tuple[int, int] = _RECONNECT_DELAY) -> None:
        """Send the headers and, except for HEAD, the reconnect delay, unless already sent."""
        context = self._context
        if context.stream_status is not None:
            return
        context.stream_status = HTTPStatus.OK
        context.events = 0
        if context.request.method == hdrs.METH_HEAD:
            await self.response.prepare(context.request)
            return
        transport = context.request.transport
        if transport is not None:
            transport.set_write_buffer_limits(high=CHUNK_BYTES)
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        await self.response.prepare(context.request)
        retry = random.randint(*reconnect_delay)  # noqa: S311  # not for security
        await self.send(b"retry: %d\n\n" % retry)

    async def send(self, data: bytes) -> None:
        """Send data; return once most of it is buffered.

        Raises `SlowReaderError`, and `ConnectionError` if the client has disconnected.
        """
        self._sending = True
        for start in range(0, len(data), CHUNK_BYTES):
            try:
                async with asyncio.timeout(self._reader_timeout):
                    await self.response.write(data[start : start + CHUNK_BYTES])
                    await self._context.request.writer.drain()
            except TimeoutError:
                raise SlowReaderError from None
        self._sending = False

    async def finish(self, end: EndReason) -> None:
        """End the stream with a comment that gives the reason. Unsent data is dropped.

        The client has a second to read the rest, or `reader_timeout` if it was too slow. Then
        the connection is aborted. An `EventSource` reconnects in either case, and ignores an
        incomplete event.
        """
        self.ended = True
        if end is EndReason.CALLER_GONE:
            return
        request = self._context.request
        try:
            async with asyncio.timeout(
                self._reader_timeout if end is EndReason.SLOW_READER else FINAL_READ_TIMEOUT
            ):
                await self.begin(
                    _LONG_RECONNECT_DELAY if end is EndReason.OVERLOADED else _RECONNECT_DELAY
                )
                # A comment would complete an event that was sent in part.
                if request.method != hdrs.METH_HEAD and not self._sending:
                    await self.response.write(_END_COMMENTS.get(end, b""))
                await self.response.write_eof()
        except (TimeoutError, SlowReaderError, ConnectionError):
            self._abort()
        except BaseException:
            self._abort()
            raise

    def _abort(self) -> None:
        transport = self._context.request.transport
        if transport is not None:
            transport.abort()
