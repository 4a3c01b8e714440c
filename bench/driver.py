"""A load generator for gRPC, and for HTTP/1.1 where refusals matter, in its own process.

`python -m bench.driver JSON` runs `drive` with these arguments and prints a Measured as JSON.
"""

import asyncio
import json
import math
import resource
import sys
from base64 import b64encode
from dataclasses import asdict
from typing import Any, Literal

import uvloop

from bench.calls import Calls
from bench.grpc_client import MESSAGE, GrpcConnection
from bench.http_client import HttpConnection
from bench.measured import REFUSALS, Latency, Measured
from bench.workload import Workload, grpc_messages, http_messages, method_of

RESPONSE_TIMEOUT = 15.0  # seconds for outstanding responses after the time
CALLERS_PER_CONNECTION = 1_000
# Bytes of a response that is kept. A longer one is not compared with an empty server.
MAX_KEPT = 64 * 1024


async def drive(
    *,
    protocol: Literal["grpc", "http"],
    address: str,
    workload: dict[str, Any],
    callers: int,
    seconds: float,
    pause: float,
    rate: float | None = None,
) -> Measured:
    """Run `callers` that make one call after another for `seconds`, and await the responses.

    After an error, a caller waits `pause` (seconds). `rate` limits the calls per second of
    all callers together; it is not reached if responses are slow.
    """
    work = Workload(**workload)
    make = grpc_messages(work) if protocol == "grpc" else http_messages(work, address)
    cpu_before = _cpu_seconds()
    interval = callers / rate if rate else 0.0
    calls = Calls(make, seconds=seconds, pause=pause, interval=interval)
    connections: list[GrpcConnection | HttpConnection] = []
    if protocol == "grpc":
        many = math.ceil(callers / CALLERS_PER_CONNECTION)
        for number in range(many):
            share = callers // many + (number < callers % many)
            connections.append(GrpcConnection(calls, method_of=method_of(work), callers=share))
    else:
        connections += (
            HttpConnection(calls, delay=pause * number / callers) for number in range(callers)
        )
    for connection in connections:
        await _open(connection, address)
    await asyncio.wait(
        [connection.ended for connection in connections],
        timeout=seconds + max(pause, interval) + RESPONSE_TIMEOUT,
    )
    for connection in connections:
        connection.abandon()
    refusals = [took for code in REFUSALS for took in calls.answers.get(code, [])]
    others = [took for code in calls.answers.keys() - REFUSALS for took in calls.answers[code]]
    return Measured(
        answers={code: len(times) for code, times in calls.answers.items()},
        seconds=calls.seconds,
        cpu_seconds=_cpu_seconds() - cpu_before,
        latency=Latency.of(others),
        refusals=Latency.of(refusals) if refusals else None,
        response=_first_response(connections[0]),
    )


def _first_response(connection: GrpcConnection | HttpConnection) -> bytes:
    """Return the message of a first response by gRPC, if it is to be kept."""
    if isinstance(connection, HttpConnection) or len(connection.first_data) > MAX_KEPT:
        return b""
    return bytes(connection.first_data[MESSAGE.size :])


async def _open(connection: GrpcConnection | HttpConnection, address: str) -> None:
    host, port = address.rsplit(":", 1)
    await asyncio.get_running_loop().create_connection(lambda: connection, host, int(port))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    json.dump(
        asdict(uvloop.run(drive(**json.loads(sys.argv[1])))),
        sys.stdout,
        default=lambda response: b64encode(response).decode(),
    )
