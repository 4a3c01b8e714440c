"""Response bodies that are sent while they are produced."""

import asyncio
import socket
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import hdrs
from aiohttp.web import StreamResponse

from gateway.http.compression import GZIP, accepts_gzip, gzip_compressor
from gateway.http.context import RequestContext
from gateway.http.negotiation import add_vary
from gateway.http.responses import add_common_headers

CHUNK_BYTES = 16 * 1024
"""Data is written in chunks of this size, each after the previous one fits into the buffers."""
SOCKET_BUFFER_BYTES = 64 * 1024
"""The kernel buffers up to twice as much unread data; its default is some megabytes."""


class SlowReaderError(Exception):
    """A client has read nothing for too long."""


class BodyStream:
    """The body of one response.

    Some 200 KB of unread data are buffered. Then sending waits, for at most `reader_timeout`
    seconds.
    """

    def __init__(
        self,
        context: RequestContext,
        headers: Mapping[str, str],
        *,
        reader_timeout: float,
        compress: bool = False,
    ) -> None:
        """Prepare a response. `compress` the body if the caller accepts it, and `end` it."""
        self.response = StreamResponse(headers=headers)
        add_common_headers(self.response, context)
        self._context = context
        self._reader_timeout = reader_timeout
        self._compressor = None
        if compress:
            add_vary(self.response, hdrs.ACCEPT_ENCODING)
            if accepts_gzip(context.request):
                self.response.headers[hdrs.CONTENT_ENCODING] = GZIP
                self._compressor = gzip_compressor()

    async def begin(self) -> None:
        """Send the headers. From then on, no other response can be sent."""
        context = self._context
        context.stream_status = HTTPStatus.OK
        transport = context.request.transport
        if transport is not None and context.request.method != hdrs.METH_HEAD:
            transport.set_write_buffer_limits(high=CHUNK_BYTES)
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        await self.response.prepare(context.request)

    async def send(self, data: bytes) -> None:
        """Send data; return once most of it is buffered.

        Raises `SlowReaderError`, and `ConnectionError` if the client has disconnected.
        """
        await self._write(data if self._compressor is None else self._compressor.compress(data))

    async def end(self) -> None:
        """Send what the compression holds back. Raises the errors of `send`."""
        if self._compressor is not None:
            await self._write(self._compressor.flush())

    async def _write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK_BYTES):
            writing = asyncio.ensure_future(self._write_chunk(data[start : start + CHUNK_BYTES]))
            # It is never cancelled: aiohttp's connection fails every later wait after that.
            writing.add_done_callback(lambda writing: writing.cancelled() or writing.exception())
            if not (await asyncio.wait({writing}, timeout=self._reader_timeout))[0]:
                raise SlowReaderError
            writing.result()

    async def _write_chunk(self, chunk: bytes) -> None:
        await self.response.write(chunk)
        await self._context.request.writer.drain()

    def abort(self) -> None:
        """Close the connection, so that the client notices that the body is incomplete."""
        transport = self._context.request.transport
        if transport is not None:
            transport.abort()
