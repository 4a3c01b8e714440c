"""Timeouts of the gateway's connections."""

import asyncio
import socket
from time import monotonic

import pytest

from gateway.settings import Settings
from tests.gateway.conftest import running_gateway
from tests.gateway.fake_service import FakeService
from tests.gateway.raw_http import connection, request

ALIVE = request("GET /healthz")


async def test_an_idle_connection_outlives_slow_headers(fake: FakeService) -> None:
    async with (
        running_gateway(fake, gateway_keepalive_timeout=60, gateway_header_timeout=0.2) as gateway,
        connection(gateway) as unused,
        connection(gateway) as used,
    ):
        assert (await used.send(ALIVE)).status == 200
        await asyncio.sleep(0.6)
        assert (await used.send(ALIVE)).status == 200
        assert (await unused.send(ALIVE)).status == 200


@pytest.mark.parametrize("before", [0, 1])
async def test_slow_headers_are_cut(fake: FakeService, before: int) -> None:
    async with (
        running_gateway(fake, gateway_keepalive_timeout=60, gateway_header_timeout=0.3) as gateway,
        connection(gateway) as caller,
    ):
        for _ in range(before):
            assert (await caller.send(ALIVE)).status == 200
        started = monotonic()
        caller.writer.write(ALIVE[:10])
        await asyncio.sleep(0.2)
        caller.writer.write(ALIVE[10:20])  # more of it does not buy more time
        assert await caller.ended()
        assert 0.25 < monotonic() - started < 5


async def test_slow_headers_that_come_with_the_connection_are_cut(fake: FakeService) -> None:
    """The data arrives before the server waits for a request."""
    async with running_gateway(
        fake, gateway_keepalive_timeout=60, gateway_header_timeout=0.3
    ) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.listening.port)) as caller:
            caller.sendall(ALIVE[:10])  # nothing else of this process runs in between
            caller.setblocking(False)
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""


async def test_headers_in_pieces_that_come_in_time_are_read(fake: FakeService) -> None:
    async with (
        running_gateway(fake, gateway_keepalive_timeout=60, gateway_header_timeout=0.5) as gateway,
        connection(gateway) as caller,
    ):
        caller.writer.write(ALIVE[:10])
        await asyncio.sleep(0.1)
        assert (await caller.send(ALIVE[10:])).status == 200
        await asyncio.sleep(0.8)
        assert (await caller.send(ALIVE)).status == 200


@pytest.mark.parametrize("before", [0, 1])
async def test_an_idle_connection_is_closed_in_the_end(fake: FakeService, before: int) -> None:
    async with (
        running_gateway(fake, gateway_keepalive_timeout=0.2) as gateway,
        connection(gateway) as caller,
    ):
        for _ in range(before):
            assert (await caller.send(ALIVE)).status == 200
        assert await caller.ended()


def test_the_default_is_above_what_load_balancers_keep() -> None:
    assert Settings().gateway_keepalive_timeout > 60
