"""Event streams that are open: how many may be, how each is sent, and how it ends."""

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
from gateway.http.responses import sign

MEDIA_TYPE = "text/event-stream"
FINAL_READ_TIMEOUT = 1.0
"""Seconds that a caller has to take the rest of a stream that ends."""

CHUNK_BYTES = 16 * 1024
"""Handed over at a time, each once the one before has found room."""
SOCKET_BUFFER_BYTES = 64 * 1024
"""The kernel keeps up to twice as much of what its reader has not taken; it would keep some
megabytes by itself."""

# Milliseconds, at random between: those who lose their stream together come back apart.
_RECONNECT_DELAY = (1_000, 3_000)
_LONG_RECONNECT_DELAY = (5_000, 15_000)


class End(StrEnum):
    """Why a stream ended, as logs and metrics have it."""

    CALLER_GONE = "caller_gone"
    SLOW_READER = "slow_reader"
    SERVICE_UNAVAILABLE = "service_unavailable"
    REFUSED = "refused"
    OVERLOADED = "overloaded"
    STOPPING = "stopping"


_END_COMMENTS = {
    End.SERVICE_UNAVAILABLE: b": the service does not answer\n\n",
    End.REFUSED: b": the service refuses to go on\n\n",
    End.OVERLOADED: b": too many streams are open\n\n",
    End.STOPPING: b": the gateway stops\n\n",
}


class SlowReaderError(Exception):
    """A reader has taken nothing for too long."""


class TooManyStreamsError(Exception):
    """As many streams are open as may be."""


class Streams:
    """The streams that are open, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ends: set[asyncio.Timeout] = set()
        self._closed = False

    @property
    def count(self) -> int:
        return len(self._ends)

    @contextmanager
    def slot(self, end: asyncio.Timeout) -> Iterator[None]:
        """Take one, for a stream that this timeout ends. Raises `TooManyStreamsError`."""
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
        """End every stream at once, those that begin later too."""
        self._closed = True
        for end in self._ends:
            end.reschedule(0)


class EventStream:
    """One stream on its way to its reader (WHATWG HTML, section 9.2).

    What the reader does not take stays in buffers of some 200 KB. Then sending waits, for
    `reader_timeout` seconds at most.
    """

    def __init__(self, context: RequestContext, *, reader_timeout: float) -> None:
        self.response = StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: MEDIA_TYPE,
                hdrs.CACHE_CONTROL: "no-store",
                hdrs.VARY: hdrs.ACCEPT,
                "X-Accel-Buffering": "no",  # a proxy would hold events back
            }
        )
        sign(self.response, context)
        self.ended = False
        self._context = context
        self._reader_timeout = reader_timeout
        self._sending = False

    async def begin(self, reconnect_delay: tuple[int, int] = _RECONNECT_DELAY) -> None:
        """Send the headers and, but for HEAD, when to come back, unless that was done."""
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
        retry = random.randint(*reconnect_delay)  # noqa: S311  # spreads load, keeps no secret
        await self.send(b"retry: %d\n\n" % retry)

    async def send(self, data: bytes) -> None:
        """Send what has begun; return once most of it has found room.

        Raises `SlowReaderError`, and `ConnectionError` if the reader has gone.
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

    async def finish(self, end: End) -> None:
        """End the stream and say why in a comment; what was not sent is given up.

        The reader has a second to take the rest, a slow one as long as it had before. Then
        the connection is closed without a proper end. An `EventSource` comes back after
        the one and the other, and passes over an event that is not whole.
        """
        self.ended = True
        if end is End.CALLER_GONE:
            return
        request = self._context.request
        try:
            async with asyncio.timeout(
                self._reader_timeout if end is End.SLOW_READER else FINAL_READ_TIMEOUT
            ):
                await self.begin(
                    _LONG_RECONNECT_DELAY if end is End.OVERLOADED else _RECONNECT_DELAY
                )
                # A comment would make an event that is not whole look so.
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
