"""Requests that never arrive completely, of which gRPC keeps what has arrived."""

import socket
import time

import pytest
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, HeadersFrame, SettingsFrame

from bench.stack import peak_mib
from local.programs import Program
from service.rpc.request_reader import MAX_SLOW_REQUESTS
from tests.conftest import StartProgram
from tests.observing import until
from tests.rpc.http2 import PREFACE, Connection, framed
from tests.rpc.test_request_reader import APPOINTMENTS, EXHAUSTED, HEALTH, INVALID, WATCH

BATCH = f"{APPOINTMENTS}/BatchUpsertAppointments"
GET = f"{APPOINTMENTS}/GetAppointment"
ALMOST = framed(bytes(3 * 1024 * 1024 - 1000))[:-1]
"""The longest message that a call may have, without its last byte."""
SENT = 640 * 1024 * 1024
DEFAULT_WINDOW = 65_535


@pytest.mark.parametrize("path", [BATCH, WATCH, f"{HEALTH}/Check"])
def test_of_too_many_slow_requests_some_are_refused(service: Program, path: str) -> None:
    with Connection(service.address) as connection:
        calls = [connection.open(path) for _ in range(MAX_SLOW_REQUESTS + 20)]
        for call in calls:
            connection.data(call, framed(b"x" * 100)[:50])

        def ended() -> list[int]:
            connection.frames()
            return [call for call in calls if connection.ended(call)]

        until(lambda: len(ended()) == 20)
        for status in connection.statuses(ended()).values():
            assert (status["grpc-status"], status["grpc-message"]) == (
                EXHAUSTED,
                "too many requests take long to arrive; nothing was written, try again later",
            )
        connection.frames(within=1)
        assert len(ended()) == 20
        waiting = next(call for call in calls if not connection.ended(call))
        connection.data(waiting, b"", end=True)
        assert connection.status(waiting)["grpc-status"] == INVALID


def test_requests_that_arrive_at_once_are_read(service: Program) -> None:
    with Connection(service.address) as connection:
        calls = []
        for _ in range(1000):
            calls.append(connection.open(GET))
            connection.data(calls[-1], framed(b""), end=True)
        statuses = connection.statuses(calls)
    assert {status["grpc-status"] for status in statuses.values()} == {INVALID}


def test_parts_of_large_requests_do_not_fill_the_memory(start_service: StartProgram) -> None:
    service = start_service()
    before = peak_mib(service.process.pid)
    with Connection(service.address) as connection:
        for _ in range(SENT // len(ALMOST)):
            connection.data(connection.open(BATCH), ALMOST)
    assert peak_mib(service.process.pid) - before < SENT * 0.6 / 1024**2


def test_unread_requests_have_small_windows(service: Program) -> None:
    with Connection(service.address) as connection:
        for _ in range(20):
            connection.data(connection.open(BATCH), ALMOST)
        give_up = time.monotonic() + 2
        while time.monotonic() < give_up:
            connection.frames()
        assert connection.first_window <= DEFAULT_WINDOW


def test_a_header_block_without_an_end_does_not_fill_the_memory(
    start_service: StartProgram,
) -> None:
    service = start_service()
    before = peak_mib(service.process.pid)
    block = Encoder().encode([(f"x-{number}", "y" * 200) for number in range(60)])
    megabyte = ContinuationFrame(1, block).serialize() * (1024 * 1024 // len(block))
    host, _, port = service.address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(PREFACE + SettingsFrame().serialize())
        connection.sendall(HeadersFrame(1, Encoder().encode([(":method", "POST")])).serialize())
        for _ in range(200):
            connection.sendall(megabyte)
    assert peak_mib(service.process.pid) - before < 50
