"""`python -m gateway` as a process: its settings, its first line, its end."""

import asyncio
import json
import os
import signal
import socket
import sys
from typing import Any

import pytest

from tests.gateway.fake_service import FakeService

_FREE = {"GATEWAY_HOST": "127.0.0.1", "GATEWAY_PORT": "0", "GATEWAY_METRICS_PORT": "0"}


async def _start(*arguments: str, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        *arguments,
        env={**os.environ, **_FREE, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def _line(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    return json.loads(await asyncio.wait_for(process.stdout.readline(), 20))


async def test_arguments_are_refused() -> None:
    process = await _start("--help")
    output, errors = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, output) == (1, b"")
    assert errors.startswith(b"usage: python -m gateway")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_listens_and_ends_cleanly(
    fake: FakeService, number: signal.Signals
) -> None:
    process = await _start(SERVICE_ADDRESS=f"127.0.0.1:{fake.port}")
    listening = await _line(process)
    assert listening["event"] == "listening"
    assert listening["port"] > 0
    assert listening["metrics_port"] > 0
    reader, writer = await asyncio.open_connection("127.0.0.1", listening["port"])
    writer.write(
        b"GET /api/appointments/secret?organizationId=o HTTP/1.1\r\nHost: x\r\n"
        b"X-Request-Id: r-1\r\n\r\n"
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    line = await _line(process)
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp")
    assert line == {
        "event": "request",
        "level": "info",
        "request_id": "r-1",
        "organization": "o",
        "method": "GetAppointment",
        "http_method": "GET",
        "status": 200,
    }
    process.send_signal(number)
    output, errors = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, errors) == (0, b"")
    stopping, stopped = map(json.loads, output.splitlines())
    assert (stopping["event"], stopping["in_flight"]) == ("stopping", 0)
    assert stopped["event"] == "stopped"
    writer.close()


async def test_without_a_metrics_port_there_are_no_metrics() -> None:
    process = await _start(GATEWAY_METRICS_PORT="")
    assert (await _line(process))["metrics_port"] is None
    process.terminate()
    await process.communicate()


@pytest.mark.parametrize("name", ["GATEWAY_PORT", "GATEWAY_METRICS_PORT"])
async def test_a_port_in_use_is_named_in_one_line(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = await _start(**{name: port})
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert errors.startswith(b"error: ")
    assert errors.count(b"\n") == 1
    assert port.encode() in errors
