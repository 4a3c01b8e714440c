"""The gRPC health service (grpc.health.v1): whether the database responds."""

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2

from service.errors import Overloaded, ServiceError
from service.postgres.database import Database
from service.rpc.listening import bind
from service.rpc.request_reader import SERVER_OPTIONS, Arrivals, servicer_handlers

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

# Seconds.
INTERVAL = 1.0

# How a probe ends when the database is unavailable or busy.
EXPECTED = (ServiceError, TimeoutError, asyncio.CancelledError)

log = structlog.get_logger()


async def serve_health(
    servicer: health.aio.HealthServicer,
    host: str,
    port: int | None,
    stack: AsyncExitStack,
    *,
    max_bytes: int,
    request_timeout: float,
) -> int | None:
    """Serve the health service alone, without TLS, for probes that have no certificate.

    Returns the port, None without one.
    """
    if port is None:
        return None
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *SERVER_OPTIONS])
    server.add_generic_rpc_handlers(
        servicer_handlers(
            {HEALTH: servicer}, Arrivals(), max_bytes=max_bytes, timeout=request_timeout
        )
    )
    bound = bind(server, host, port, settings="GRPC_HOST, GRPC_HEALTH_PORT")
    await server.start()
    stack.push_async_callback(server.stop, None)
    return bound


async def set_serving(
    servicer: health.aio.HealthServicer, services: Collection[ServiceDescriptor], *, serving: bool
) -> None:
    """Set the health status of services."""
    statuses = health_pb2.HealthCheckResponse
    for service in services:
        await servicer.set(service.full_name, statuses.SERVING if serving else statuses.NOT_SERVING)


async def watch_readiness(
    services: Collection[ServiceDescriptor],
    servicer: health.aio.HealthServicer,
    database: Database,
    *,
    probe_timeout: float,
) -> NoReturn:
    """Update the health status of services that need the database, until cancelled.

    A probe fails after `probe_timeout` (seconds). The status of "" (the process) and of services
    that need no database does not change: a restart would not bring the database back.

    Raises the error of a failed probe unless the database was unavailable or busy.
    """
    ready: bool | None = None
    probe: asyncio.Task[Any] | None = None
    while True:
        was_ready = ready
        # The statement timeout of a server that hangs does not work either, so the wait has
        # a timeout of its own. A probe that is still running is not started again.
        probe = probe or asyncio.create_task(database.fetch_across("SELECT 1"))
        await asyncio.wait({probe}, timeout=probe_timeout)
        failure: BaseException | None = TimeoutError("the probe timed out")
        if probe.done():
            failure = asyncio.CancelledError() if probe.cancelled() else probe.exception()
            probe = None
        ready = failure is None or isinstance(failure, Overloaded)
        if ready is not was_ready:
            await set_serving(servicer, services, serving=ready)
            if not ready:
                log.warning("not ready", error=str(failure))
            elif was_ready is False:
                log.info("ready again")
        if failure is not None and not isinstance(failure, EXPECTED):
            raise failure
        await asyncio.sleep(INTERVAL)
