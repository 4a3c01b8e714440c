"""A minimal gRPC client: few methods, one connection, a fixed number of calls in flight.

A general client uses as much CPU as the service that it measures. This client saves most of
it: all requests of a method have the same headers, and only the status of a response is read. With
SETTINGS_HEADER_TABLE_SIZE=0 the server's headers do not depend on earlier ones (RFC 7541,
section 4.2), so headers that are not needed are not decoded.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import cast

import grpc
from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from bench.calls import CONNECTION_LOST, UNANSWERED, Calls

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_TABLE = 4_096
DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = 2**31 - 1
LARGEST_FRAME = 16_384  # that every peer accepts

FRAME = struct.Struct(">HBBBL")  # length / 256, length % 256, type, flags, stream
MESSAGE = struct.Struct(">BL")  # not compressed, length
DATA, HEADERS, WINDOW_UPDATE = 0x0, 0x1, 0x8
END_STREAM, END_HEADERS = 0x1, 0x4
FIRST_STREAM = 1

# The name of the status trailer, as a literal without Huffman coding. Other values cannot
# contain it, since they have no control characters.
STATUS = b"\x0bgrpc-status"
CODES = {b"%d" % code.value[0]: code.name for code in grpc.StatusCode}


class GrpcConnection(asyncio.Protocol):
    """`callers`, each with one call in flight until there are no more requests.

    `ended` is done when the last caller has ended or the connection is lost. Codes are the
    gRPC statuses, CONNECTION_LOST, RST_STREAM, GOAWAY (the server has not processed the
    call) and NO_STATUS. `first_data` is what the server sent in response to the first request.
    """

    def __init__(self, calls: Calls, *, method_of: Callable[[int], str], callers: int) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls = calls
        self._method_of = method_of
        self._callers = callers
        self._transport: asyncio.Transport
        self._out: list[bytes] = []  # frames for the next write
        self._started: dict[int, float] = {}  # by stream
        self._waiting: deque[tuple[float, str, bytes]] = deque()  # for the window or a stream
        self._last_stream = FIRST_STREAM - 2
        self._encoder = Encoder()
        self._ready = False  # when the server's settings are known
        self._headers: dict[str, bytes] = {}  # by method
        self._encoded: set[str] = set()  # methods that are in the header table
        self._window = self._stream_window = DEFAULT_WINDOW  # bytes that may be sent
        self._streams = LARGEST_WINDOW  # that may be open
        self._leaving = False
        self._rest = b""  # of an incomplete frame
        self._received = 0  # bytes of data since the last WINDOW_UPDATE
        self.first_data = bytearray()
        self._trailers: HeadersFrame | None = None  # to be continued
        self._decoder = Decoder()
        self._decoder.header_table_size = self._decoder.max_allowed_table_size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        settings = {
            SettingsFrame.HEADER_TABLE_SIZE: 0,
            SettingsFrame.ENABLE_PUSH: 0,
            SettingsFrame.INITIAL_WINDOW_SIZE: LARGEST_WINDOW,
        }
        window = LARGEST_WINDOW - DEFAULT_WINDOW
        self._out.append(PREFACE)
        self._write(SettingsFrame(settings=settings))
        self._write(WindowUpdateFrame(0, window_increment=window))
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._end(CONNECTION_LOST)

    def abandon(self) -> None:
        """Count what is in flight as unanswered and close the connection."""
        self._end(UNANSWERED)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        while end - position >= FRAME.size:
            high, low, kind, flags, stream = FRAME.unpack_from(data, position)
            start = position + FRAME.size
            stop = start + (high << 8 | low)
            if stop > end:
                break
            if kind == DATA:
                self._take_data(data[start:stop], flags, stream)
            elif kind == WINDOW_UPDATE:
                if stream == 0:
                    self._window += int.from_bytes(data[start:stop], "big")
                    self._send()
            elif kind != HEADERS:
                self._take(_parse(data[position:stop]))
            elif flags & END_STREAM:
                found = data.find(STATUS, start, stop) + len(STATUS)
                code = CODES.get(data[found + 1 : found + 1 + data[found]])
                if flags & END_HEADERS and found >= len(STATUS) and code is not None:
                    self._answered(stream, code)
                else:
                    self._take(_parse(data[position:stop]))
            position = stop
        self._rest = data[position:]
        if self._received > LARGEST_WINDOW // 2:
            self._write(WindowUpdateFrame(0, window_increment=self._received))
            self._received = 0

    def _take_data(self, data: bytes, flags: int, stream: int) -> None:
        self._received += len(data)
        if stream == FIRST_STREAM:
            self.first_data += data
        if flags & END_STREAM:
            self._answered(stream, "NO_STATUS")

    def _take(self, frame: Frame) -> None:
        """Process a frame that is not part of a usual response."""
        if isinstance(frame, SettingsFrame):
            if "ACK" not in frame.flags:
                self._set(frame)
        elif isinstance(frame, PingFrame):
            if "ACK" not in frame.flags:
                self._write(PingFrame(opaque_data=frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, HeadersFrame):
            self._trailers = frame
            self._read_trailers(frame)
        elif isinstance(frame, ContinuationFrame):
            if self._trailers is not None and self._trailers.stream_id == frame.stream_id:
                self._trailers.data += frame.data
                self._read_trailers(frame)
        elif isinstance(frame, RstStreamFrame):
            self._answered(frame.stream_id, "RST_STREAM")
        elif isinstance(frame, GoAwayFrame):
            self._leaving = True
            for stream in [each for each in self._started if each > frame.last_stream_id]:
                self._answered(stream, "GOAWAY")

    def _set(self, frame: SettingsFrame) -> None:
        settings = frame.settings
        self._streams = settings.get(SettingsFrame.MAX_CONCURRENT_STREAMS, self._streams)
        self._stream_window = settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, self._stream_window)
        self._write(SettingsFrame(flags=["ACK"]))
        if self._ready:
            return
        self._ready = True
        # The first settings contain the size of the server's header table. With the table,
        # the headers take a few bytes from the second request of a method on.
        table = settings.get(SettingsFrame.HEADER_TABLE_SIZE, DEFAULT_TABLE)
        self._encoder.header_table_size = min(table, DEFAULT_TABLE)
        for caller in range(self._callers):
            self._call_after(self._calls.spread * caller / self._callers)

    def _headers_of(self, method: str) -> bytes:
        """Return the headers of the request that is sent next."""
        found = self._headers.get(method)
        if found is not None:
            return found
        host, port = self._transport.get_extra_info("peername")[:2]
        encoded: bytes = self._encoder.encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", method),
                (":authority", f"{host}:{port}"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ]
        )
        if method in self._encoded:
            self._headers[method] = encoded
        else:
            # New entries of the table move the others.
            self._encoded.add(method)
            self._headers.clear()
        return encoded

    def _call(self) -> None:
        """Make a caller's next call. Without one it ends; the last one closes the connection."""
        now = perf_counter()
        message = None if self._leaving else self._calls.next(now)
        if message is None:
            self._callers -= 1
            if not self._callers:
                self._transport.close()
            return
        if len(message) + MESSAGE.size > min(self._stream_window, LARGEST_FRAME):
            raise ValueError(f"a message of {len(message)} bytes does not fit into one frame")
        self._waiting.append((now, self._method_of(self._calls.latest), message))
        self._send()

    def _call_after(self, pause: float) -> None:
        asyncio.get_running_loop().call_later(pause, self._call)

    def _send(self) -> None:
        """Send waiting requests within the server's flow-control window and stream limit."""
        waiting = self._waiting
        while waiting and len(self._started) < self._streams:
            started, method, message = waiting[0]
            size = len(message) + MESSAGE.size
            if size > self._window:
                return
            waiting.popleft()
            self._window -= size
            self._last_stream += 2
            stream, headers = self._last_stream, self._headers_of(method)
            self._started[stream] = started
            if not self._out:
                asyncio.get_running_loop().call_soon(self._flush)
            self._out += (
                FRAME.pack(len(headers) >> 8, len(headers) & 0xFF, HEADERS, END_HEADERS, stream),
                headers,
                FRAME.pack(size >> 8, size & 0xFF, DATA, END_STREAM, stream),
                MESSAGE.pack(0, len(message)),
                message,
            )

    def _write(self, frame: Frame) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(frame.serialize())

    def _flush(self) -> None:
        """Write all frames of one event loop iteration together."""
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def _answered(self, stream: int, code: str) -> None:
        started = self._started.pop(stream, None)
        if started is None:
            return  # already counted
        pause = self._calls.answered(code, started, perf_counter())
        if pause:
            self._call_after(pause)
        else:
            self._call()

    def _read_trailers(self, last: HeadersFrame | ContinuationFrame) -> None:
        """Count the response if this is the last frame of its trailers."""
        if self._trailers is None or "END_HEADERS" not in last.flags:
            return
        trailers: dict[bytes, bytes] = dict(self._decoder.decode(self._trailers.data, raw=True))
        self._trailers = None
        status = CODES.get(trailers.get(b"grpc-status", b""), "NO_STATUS")
        self._answered(last.stream_id, status)

    def _end(self, code: str) -> None:
        if self.ended.done():
            return
        now = perf_counter()
        self._leaving = True
        for started in (*self._started.values(), *(started for started, _, _ in self._waiting)):
            self._calls.answered(code, started, now)
        self._started.clear()
        self._waiting.clear()
        self.ended.set_result(None)


def _parse(data: bytes) -> Frame:
    frame, _ = Frame.parse_frame_header(memoryview(data[: FRAME.size]))
    frame.parse_body(memoryview(data[FRAME.size :]))
    return frame
