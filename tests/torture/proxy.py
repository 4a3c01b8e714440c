"""A TCP proxy that cuts, delays or swallows what passes."""

import asyncio
import contextlib
import socket
import struct
from enum import Enum
from typing import Self

CHUNK = 65536
# Close with a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)


class Way(Enum):
    """The direction of bytes."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class Proxy:
    """Passes connections on to a Unix socket or a port of this machine, which may change."""

    def __init__(self, name: str, target: str | int) -> None:
        self.name = name
        self.target = target
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = {way: asyncio.Event() for way in Way}
        self._swallowed: set[Way] = set()
        # Bytes until the connections are cut.
        self._left: dict[Way, int] = {}
        for event in self._open.values():
            event.set()

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        """Cut all connections now."""
        for ours, theirs in [*self._connections.items()]:
            for writer in (ours, theirs):
                opened = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()

    def cut_after(self, way: Way, count: int) -> None:
        """Cut all connections when so many more bytes have passed in one direction."""
        self._left[way] = count

    def hold(self, way: Way) -> None:
        """Delay what passes in one direction until `release`."""
        self._open[way].clear()

    def swallow(self, way: Way) -> None:
        """Lose what passes in one direction, as a firewall does, until `release`."""
        self._swallowed.add(way)

    def release(self) -> None:
        """Undo everything. Connections that have lost bytes are cut."""
        self._left.clear()
        if self._swallowed:
            self._swallowed.clear()
            self.reset()
        for event in self._open.values():
            event.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self.target, str):
                back, out = await asyncio.open_unix_connection(self.target)
            else:
                back, out = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self._connections[writer] = out
        pumps = [
            asyncio.create_task(self._pump(reader, out, Way.TO_SERVER)),
            asyncio.create_task(self._pump(back, writer, Way.TO_CLIENT)),
        ]
        for pump in pumps:
            self._tasks.add(pump)
            pump.add_done_callback(self._tasks.discard)
        try:
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._connections.pop(writer, None)
            writer.close()
            out.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        with contextlib.suppress(ConnectionError, OSError):
            while data := await reader.read(CHUNK):
                await self._open[way].wait()
                if way in self._swallowed:
                    continue
                left = self._left.get(way)
                if left is not None:
                    self._left[way] = left - len(data)
                    if left <= len(data):
                        writer.write(data[:left])
                        await writer.drain()
                        self._left.pop(way, None)
                        self.reset()
                        return
                writer.write(data)
                await writer.drain()
        if not writer.is_closing():
            with contextlib.suppress(OSError, NotImplementedError):
                writer.write_eof()
