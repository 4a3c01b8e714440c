"""gRPC upserts with distinct bodies, from a process of its own; prints one JSON object.

`python -m bench.driver ADDRESS IN_FLIGHT SECONDS ORGANIZATIONS`: keeps so many calls in
flight for so long, over so many organizations, no two of which overlap.
"""

import asyncio
import json
import resource
import sys
import time
import uuid
from collections import Counter

import grpc
import uvloop
from appointments.v1 import appointment_service_pb2 as rpc

METHOD = "/appointments.v1.AppointmentService/UpsertAppointment"
Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
FIRST_SECOND = 1_893_456_000  # 2030-01-01


class Load:
    """Counts what was answered, and how long each answer took, in seconds."""

    def __init__(self, organizations: int) -> None:
        self._names = [f"{uuid.uuid4()}" for _ in range(organizations)]
        self._sent = 0
        self.codes: Counter[str] = Counter()
        self.seconds: list[float] = []

    async def run(self, address: str, in_flight: int, duration: float) -> float:
        """Return how long it took in all."""
        async with grpc.aio.insecure_channel(address) as channel:
            # Bytes in and out: this measures the service, not this process's protobuf.
            call: Call = channel.unary_unary(METHOD)
            started = time.perf_counter()
            stop = started + duration
            await asyncio.gather(*(self._send(call, stop) for _ in range(in_flight)))
            return time.perf_counter() - started

    async def _send(self, call: Call, stop: float) -> None:
        while (started := time.perf_counter()) < stop:
            try:
                await call(self._next())
                self.codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                self.codes[error.code().name] += 1
            self.seconds.append(time.perf_counter() - started)

    def _next(self) -> bytes:
        number = self._sent
        self._sent += 1
        request = rpc.UpsertAppointmentRequest()
        wanted = request.appointment
        wanted.organization_id = self._names[number % len(self._names)]
        wanted.id = str(number)
        wanted.start.seconds = FIRST_SECOND + number * 60
        wanted.end.seconds = wanted.start.seconds + 60
        return request.SerializeToString()


def main() -> None:
    address, in_flight, duration, organizations = sys.argv[1:]
    load = Load(int(organizations))
    elapsed = uvloop.run(load.run(address, int(in_flight), float(duration)))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    ordered = sorted(load.seconds)

    def percentile(percent: int) -> float:
        return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1000

    result = {
        "per_second": load.codes["OK"] / elapsed,
        "requests": len(ordered),
        "errors": {code: count for code, count in load.codes.items() if code != "OK"},
        "p50_ms": percentile(50),
        "p95_ms": percentile(95),
        "p99_ms": percentile(99),
        "driver_us": (usage.ru_utime + usage.ru_stime) / len(ordered) * 1e6,
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
