"""A receiver that responds with any bytes that a test chooses, HTTP or not."""

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from socket import SO_LINGER, SOL_SOCKET
from time import monotonic


class End(Enum):
    """What a receiver does after its response."""

    KEEP = "wait for the next request"
    CLOSE = "close"
    RESET = "reset"
    HANG = "say nothing more"
    DRIP = "go on with a byte now and then"
    FLOOD = "go on for ever"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The bytes of a response, where they are split, and how the connection ends."""

    written: bytes = b""
    cut: int = 0
    end: End = End.CLOSE
    more: bytes = b"x"


@dataclass(slots=True)
class Request:
    """The head of a request, and whether its connection was reused."""

    head: bytes
    at: float
    reused: bool

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def target(self) -> str:
        return self.line.split(b" ")[1].decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [(name, value.strip()) for name, _, value in (x.partition(":") for x in lines)]


@dataclass(slots=True)
class RawReceiver:
    """Responds according to the target of the request; to others with success."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    def at(self, target: str) -> list[Request]:
        return [each for each in self.requests if each.target == target]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        reused = False
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await _read(reader, reused=reused)
                self.requests.append(request)
                answer = self.answers.get(request.target, TAKEN)
                await _write(writer, answer)
                if answer.end is not End.KEEP:
                    break
                reused = True
        writer.close()
        self._connections.discard(task)

    async def end(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


TAKEN = Answer(written=b"HTTP/1.1 204 No Content\r\n\r\n", end=End.KEEP)


@asynccontextmanager
async def raw_receiver(
    answers: Mapping[str, Answer] | None = None, *, host: str = "127.0.0.1"
) -> AsyncIterator[RawReceiver]:
    receiver = RawReceiver(answers or {})
    server = await asyncio.start_server(receiver.serve, host, 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await receiver.end()


async def _read(reader: asyncio.StreamReader, *, reused: bool) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    request = Request(head=head, at=monotonic(), reused=reused)
    [length] = [int(value) for name, value in request.headers if name.lower() == "content-length"]
    await reader.readexactly(length)
    return request


async def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(answer.written[: answer.cut])
    if answer.cut:
        await asyncio.sleep(0.01)
    writer.write(answer.written[answer.cut :])
    await writer.drain()
    match answer.end:
        case End.RESET:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)
        case End.HANG:
            await asyncio.sleep(60)
        case End.DRIP | End.FLOOD:
            while True:
                await asyncio.sleep(0.05 if answer.end is End.DRIP else 0)
                writer.write(answer.more)
                await writer.drain()
