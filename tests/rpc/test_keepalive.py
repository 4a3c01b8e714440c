"""Keepalive pings on connections without calls."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from local.programs import Program
from tests.rpc.http2 import Connection

pytestmark = pytest.mark.slow

# Seconds between pings: one that the README allows, and one that is too fast.
ALLOWED, TOO_FAST = 5.3, 2.0
# Time for five pings. The fourth ping that is too fast closes the connection.
LONG = 5 * ALLOWED


def goaway(program: Program, interval: float) -> bytes | None:
    """Ping at an interval on a connection without calls; return the GOAWAY data, or None."""
    with Connection(program.address) as connection:
        give_up = time.monotonic() + LONG
        while time.monotonic() < give_up:
            connection.ping()
            next_one = time.monotonic() + interval
            while time.monotonic() < next_one:
                connection.frames(within=0.1)
                if connection.goaway is not None:
                    return bytes(connection.goaway.additional_data)
    return None


def states_of_a_pinging_channel(program: Program) -> list[grpc.ChannelConnectivity]:
    """Return the states of a channel that sends pings and makes no calls."""
    states: list[grpc.ChannelConnectivity] = []
    ready = threading.Event()

    def note(state: grpc.ChannelConnectivity) -> None:
        states.append(state)
        if state is grpc.ChannelConnectivity.READY:
            ready.set()

    options = [
        ("grpc.keepalive_time_ms", int(ALLOWED * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with grpc.insecure_channel(program.address, options=options) as channel:
        channel.subscribe(note, try_to_connect=True)
        assert ready.wait(30)
        threading.Event().wait(LONG)
        channel.unsubscribe(note)
    return states[states.index(grpc.ChannelConnectivity.READY) :]


def test_pings_are_allowed_without_calls_but_not_faster_than_is_told(service: Program) -> None:
    with ThreadPoolExecutor() as pool:
        allowed = pool.submit(goaway, service, ALLOWED)
        too_fast = pool.submit(goaway, service, TOO_FAST)
        channel = pool.submit(states_of_a_pinging_channel, service)
        assert too_fast.result() == b"too_many_pings"
        assert allowed.result() is None
        assert channel.result() == [grpc.ChannelConnectivity.READY]
