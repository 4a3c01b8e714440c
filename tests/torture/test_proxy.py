"""The proxy cuts, delays and swallows what passes, and undoes it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.torture.proxy import Proxy, Way

PATIENT = 10.0
# Seconds in which nothing may arrive.
BRIEF = 0.1


class Line:
    """A connection through a proxy to a server that sends everything back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def echo(self, sent: bytes) -> bytes:
        self.writer.write(sent)
        await self.writer.drain()
        async with asyncio.timeout(PATIENT):
            return await self.reader.readexactly(len(sent))

    async def until_reset(self) -> bytes:
        """Return what arrives before the connection is reset."""
        received = b""
        async with asyncio.timeout(PATIENT):
            while True:
                try:
                    received += await self.reader.readexactly(1)
                except ConnectionResetError:
                    return received


@asynccontextmanager
async def echoing() -> AsyncIterator[Proxy]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = await Proxy("echo", server.sockets[0].getsockname()[1]).start()
    try:
        yield proxy
    finally:
        await proxy.stop()
        server.close()


async def connect(proxy: Proxy) -> Line:
    return Line(*await asyncio.open_connection("127.0.0.1", proxy.port))


async def test_it_passes_everything_on() -> None:
    async with echoing() as proxy:
        line = await connect(proxy)
        assert await line.echo(b"one") == b"one"
        line.writer.write_eof()
        async with asyncio.timeout(PATIENT):
            assert await line.reader.read() == b""


@pytest.mark.parametrize("way", Way)
async def test_it_cuts_connections_after_some_bytes(way: Way) -> None:
    async with echoing() as proxy:
        line = await connect(proxy)
        proxy.cut_after(way, 2)
        line.writer.write(b"1234")
        assert len(await line.until_reset()) <= 2
        assert await (await connect(proxy)).echo(b"new") == b"new"


@pytest.mark.parametrize("way", Way)
async def test_it_delays_what_passes(way: Way) -> None:
    async with echoing() as proxy:
        line = await connect(proxy)
        proxy.hold(way)
        line.writer.write(b"late")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(BRIEF):
                await line.reader.read(4)
        proxy.release()
        async with asyncio.timeout(PATIENT):
            assert await line.reader.readexactly(4) == b"late"


@pytest.mark.parametrize("way", Way)
async def test_it_swallows_what_passes_and_then_cuts_what_has_lost_it(way: Way) -> None:
    async with echoing() as proxy:
        line = await connect(proxy)
        assert await line.echo(b"one") == b"one"
        proxy.swallow(way)
        line.writer.write(b"lost")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(BRIEF):
                await line.reader.read(4)
        proxy.release()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(PATIENT):
                await line.reader.read(4)
        assert await (await connect(proxy)).echo(b"new") == b"new"
