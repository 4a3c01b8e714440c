"""Attacks by requests that are expensive to answer."""

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from appointments.v1.availability_pb2 import QueryAvailabilityRequest

from bench.abuse.target import Target
from bench.workload import Workload, grpc_messages

CALLERS = 32
RESOURCES = 100
MAX_BODY = 1024 * 1024


async def _repeat(
    target: Target, call: Callable[[int], Any], *, callers: int = CALLERS
) -> dict[str, Any]:
    """Call by several callers, each again when it has an answer; count the answers."""
    counted: Counter[str] = Counter()
    numbers = iter(range(2**60))

    async def one() -> None:
        while True:
            counted[str(await call(next(numbers)))] += 1

    try:
        async with asyncio.timeout(target.seconds), asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(one())
    except TimeoutError:
        pass
    return dict(counted)


async def dearest_query(target: Target) -> dict[str, Any]:
    """Availability over a year of 100 resources with 100,000 appointments, by gRPC and REST."""
    make = grpc_messages(
        Workload(operation="availability", organization="dear", stored=100_000, resources=RESOURCES)
    )
    channel = grpc.aio.insecure_channel(
        target.service, options=[("grpc.max_receive_message_length", -1)]
    )
    async with channel, ClientSession(connector=TCPConnector(limit=0)) as session:
        stub = AppointmentServiceStub(channel)

        async def call(number: int) -> str:
            request = QueryAvailabilityRequest.FromString(make(number))
            if number % 2:
                try:
                    await stub.QueryAvailability(request, timeout=30)
                except grpc.aio.AioRpcError as error:
                    await asyncio.sleep(0.1)
                    return error.code().name
                return "OK"
            query = [
                ("organizationId", request.organization_id),
                ("from", getattr(request, "from").ToJsonString()),
                ("to", request.to.ToJsonString()),
                *(("resourceId", resource) for resource in request.resource_id),
            ]
            url = f"http://{target.gateway}/api/availability"
            return await _request(session, "GET", url, params=query)

        return await _repeat(target, call)


async def _request(session: ClientSession, method: str, url: str, **options: Any) -> str:  # noqa: ANN401
    try:
        async with session.request(method, url, timeout=ClientTimeout(30), **options) as response:
            await response.read()
            if response.status == 429:
                await asyncio.sleep(0.1)
            return str(response.status)
    except (ClientError, OSError, TimeoutError) as error:
        return type(error).__name__


async def _bodies(
    target: Target, path: str, body: bytes, headers: Mapping[str, str]
) -> dict[str, Any]:
    async with ClientSession(connector=TCPConnector(limit=0)) as session:

        async def call(_: int) -> str:
            url = f"http://{target.gateway}{path}"
            sent = {"Content-Type": "application/json", **headers}
            return await _request(session, "POST", url, data=body, headers=sent)

        return await _repeat(target, call, callers=8)


async def inflating_bodies(target: Target) -> dict[str, Any]:
    """Bodies of 256 KiB of gzip that inflate to 256 MiB, from eight callers."""
    body = gzip.compress(bytes(256 * 1024 * 1024))
    return await _bodies(target, "/api/appointments", body, {"Content-Encoding": "gzip"})


async def wide_bodies(target: Target) -> dict[str, Any]:
    """Batches of 350,000 empty objects, from eight callers."""
    items = ",".join(["{}"] * ((MAX_BODY - 100) // 3))
    body = f'{{"requests":[{items}]}}'.encode()
    return await _bodies(target, "/api/appointments:batchUpsert", body, {})


async def wide_objects(target: Target) -> dict[str, Any]:
    """Attributes of 60,000 empty arrays and 250 KiB, from eight callers."""
    body = json.dumps({"attributes": {"a": [[]] * 60_000}}, separators=(",", ":")).encode()
    return await _bodies(target, "/api/appointments", body, {})


async def deep_bodies(target: Target) -> dict[str, Any]:
    """Arrays that are nested 250,000 deep, from eight callers."""
    return await _bodies(target, "/api/appointments", b"[" * 250_000, {})
