"""Open event streams: their limit, how they are sent, and how they end."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from aiohttp import hdrs
from aiohttp.web import StreamResponse

from gateway.http.body_stream import BodyStream, SlowReaderError
from gateway.http.context import RequestContext

MEDIA_TYPE = "text/event-stream"
FINAL_READ_TIMEOUT = 1.0
"""Seconds that a client has to read the rest of a stream that ends."""

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

    It waits for a client that reads nothing as `BodyStream` does.
    """

    def __init__(self, context: RequestContext, *, reader_timeout: float) -> None:
        headers = {
            hdrs.CONTENT_TYPE: MEDIA_TYPE,
            hdrs.CACHE_CONTROL: "no-store",
            hdrs.VARY: hdrs.ACCEPT,
            "X-Accel-Buffering": "no",  # else a proxy buffers events
        }
        self.ended = False
        self._body = BodyStream(context, headers, reader_timeout=reader_timeout)
        self._context = context
        self._reader_timeout = reader_timeout
        self._sending = False

    @property
    def response(self) -> StreamResponse:
        return self._body.response

    async def begin(self, reconnect_delay: tuple[int, int] = _RECONNECT_DELAY) -> None:
        """Send the headers and, except for HEAD, the reconnect delay, unless already sent."""
        context = self._context
        if context.stream_status is not None:
            return
        context.events = 0
        await self._body.begin()
        if context.request.method == hdrs.METH_HEAD:
            return
        retry = random.randint(*reconnect_delay)  # noqa: S311  # not for security
        await self.send(b"retry: %d\n\n" % retry)

    async def send(self, data: bytes) -> None:
        """Send data; return once most of it is buffered.

        Raises `SlowReaderError`, and `ConnectionError` if the client has disconnected.
        """
        self._sending = True
        await self._body.send(data)
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
            self._body.abort()
        except BaseException:
            self._body.abort()
            raise
