"""A gRPC client that sends what no library would: parts of messages, flags, frames."""

import socket
import struct
import time
from collections.abc import Iterable
from typing import Self

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    """Return a message with the frame header of gRPC."""
    return struct.pack(">BL", compressed, len(message)) + message


class Connection:
    """One connection, with calls on streams 1, 3, 5, ..."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.settimeout(30)
        self._authority = address
        self._encoder = Encoder()
        self._decoder = Decoder()
        self._next = 1
        self._rest = b""
        # Flow-control windows: of the connection, the initial one of streams, and by stream.
        self._window = self._first_window = 65_535
        self._windows: dict[int, int] = {}
        self._statuses: dict[int, dict[str, str]] = {}
        self._headers: dict[int, dict[str, str]] = {}
        self._received: dict[int, bytes] = {}
        self.goaway: GoAwayFrame | None = None
        window = {SettingsFrame.INITIAL_WINDOW_SIZE: 2**31 - 1}
        self._socket.sendall(PREFACE + SettingsFrame(settings=window).serialize())
        self.send(WindowUpdateFrame(0, window_increment=2**30))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *frames: Frame) -> None:
        self._socket.sendall(b"".join(frame.serialize() for frame in frames))

    def open(self, path: str, **headers: str) -> int:
        """Start a call; return its stream id."""
        stream, self._next = self._next, self._next + 2
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *((name.replace("_", "-"), value) for name, value in headers.items()),
        ]
        self.send(HeadersFrame(stream, self._encoder.encode(fields), flags=["END_HEADERS"]))
        return stream

    def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send a part of the call, unless its status arrives first."""
        for at in range(0, len(data), 16_384):
            piece = data[at : at + 16_384]
            while len(piece) > min(self._window, self._windows.get(stream, self._first_window)):
                self.frames()
                if stream in self._statuses:
                    return
            self._window -= len(piece)
            left = self._windows.get(stream, self._first_window)
            self._windows[stream] = left - len(piece)
            self.send(DataFrame(stream, piece))
        if end:
            self.send(DataFrame(stream, b"", flags=["END_STREAM"]))

    @property
    def first_window(self) -> int:
        """How many bytes may be sent of a call before any of them is read."""
        return self._first_window

    def ping(self) -> None:
        self.send(PingFrame(opaque_data=b"12345678"))

    def statuses(self, streams: Iterable[int], *, within: float = 30) -> dict[int, dict[str, str]]:
        """Wait for the trailers of these streams and return them."""
        wanted = set(streams)
        give_up = time.monotonic() + within
        while missing := wanted - set(self._statuses):
            assert time.monotonic() < give_up, f"no status of {len(missing)} calls"
            self.frames()
        return {stream: self._statuses[stream] for stream in wanted}

    def ended(self, stream: int) -> bool:
        """Return whether the status of a call has been received."""
        return stream in self._statuses

    def status(self, stream: int, *, within: float = 30) -> dict[str, str]:
        return self.statuses([stream], within=within)[stream]

    def headers(self, stream: int) -> dict[str, str]:
        """Return the headers of the response of a call, if they have been received."""
        return self._headers.get(stream, {})

    def messages(self, stream: int) -> list[tuple[bool, bytes]]:
        """Return the complete messages of a call so far: whether it is compressed, its bytes."""
        rest, messages = self._received.get(stream, b""), []
        while len(rest) >= 5:
            compressed, length = struct.unpack(">BL", rest[:5])
            if len(rest) < 5 + length:
                break
            messages.append((bool(compressed), rest[5 : 5 + length]))
            rest = rest[5 + length :]
        return messages

    def frames(self, *, within: float = 0.2) -> list[Frame]:
        """Return the next frames; none after `within` (seconds)."""
        self._socket.settimeout(within)
        try:
            came = self._socket.recv(1 << 20)
            assert came, "the connection was closed"
            self._rest += came
        except TimeoutError:
            return []
        finally:
            self._socket.settimeout(30)
        frames = []
        while len(self._rest) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._rest[:9]))
            if len(self._rest) < 9 + length:
                break
            frame.parse_body(memoryview(self._rest[9 : 9 + length]))
            self._rest = self._rest[9 + length :]
            self._take(frame)
            frames.append(frame)
        return frames

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, HeadersFrame):
            fields = {str(name): str(value) for name, value in self._decoder.decode(frame.data)}
            if "grpc-status" in fields:
                self._statuses[frame.stream_id] = fields
            else:
                self._headers[frame.stream_id] = fields
        elif isinstance(frame, DataFrame):
            self._received[frame.stream_id] = self._received.get(frame.stream_id, b"") + frame.data
        elif isinstance(frame, GoAwayFrame):
            self.goaway = frame
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            first = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, self._first_window)
            for stream in self._windows:
                self._windows[stream] += first - self._first_window
            self._first_window = first
            self.send(SettingsFrame(flags=["ACK"]))
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self.send(PingFrame(opaque_data=frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, WindowUpdateFrame) and frame.stream_id:
            left = self._windows.get(frame.stream_id, self._first_window)
            self._windows[frame.stream_id] = left + frame.window_increment
        elif isinstance(frame, WindowUpdateFrame):
            self._window += frame.window_increment
