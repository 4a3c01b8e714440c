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

from gateway.http.answers import sign
from gateway.http.context import RequestContext

MEDIA_TYPE = "text/event-stream"
LAST_READ_TIME = 1.0
"""Seconds that a caller has to take the rest of a stream that ends."""

PIECE_BYTES = 16 * 1024
"""Handed over at a time, each once the one before has found room."""
SOCKET_BUFFER_BYTES = 64 * 1024
"""The kernel keeps up to twice as much of what its reader has not taken; it would keep some
megabytes by itself."""

# Milliseconds, at random between: those who lose their stream together come back apart.
_COME_BACK = (1_000, 3_000)
_COME_BACK_LATER = (5_000, 15_000)


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
    def place(self, end: asyncio.Timeout) -> Iterator[None]:
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
    `patience` seconds at most.
    """

    def __init__(self, context: RequestContext, *, patience: float) -> None:
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
        self._exchange = context
        self._patience = patience
        self._sending = False

    async def begin(self, come_back: tuple[int, int] = _COME_BACK) -> None:
        """Send the headers and, but for HEAD, when to come back, unless that was done."""
        context = self._exchange
        if context.begun is not None:
            return
        context.begun = HTTPStatus.OK
        context.events = 0
        if context.request.method == hdrs.METH_HEAD:
            await self.response.prepare(context.request)
            return
        transport = context.request.transport
        if transport is not None:
            transport.set_write_buffer_limits(high=PIECE_BYTES)
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        await self.response.prepare(context.request)
        retry = random.randint(*come_back)  # noqa: S311  # spreads load, keeps no secret
        await self.send(b"retry: %d\n\n" % retry)

    async def send(self, data: bytes) -> None:
        """Send what has begun; return once most of it has found room.

        Raises `SlowReaderError`, and `ConnectionError` if the reader has gone.
        """
        self._sending = True
        for start in range(0, len(data), PIECE_BYTES):
            try:
                async with asyncio.timeout(self._patience):
                    await self.response.write(data[start : start + PIECE_BYTES])
                    await self._exchange.request.writer.drain()
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
        request = self._exchange.request
        try:
            async with asyncio.timeout(
                self._patience if end is End.SLOW_READER else LAST_READ_TIME
            ):
                await self.begin(_COME_BACK_LATER if end is End.OVERLOADED else _COME_BACK)
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
        transport = self._exchange.request.transport
        if transport is not None:
            transport.abort()
