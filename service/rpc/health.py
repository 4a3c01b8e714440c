"""Health by grpc.health.v1: whether the database answers."""

import asyncio
from collections.abc import Collection
from typing import Any, NoReturn

import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2

from service.errors import Overloaded, ServiceError
from service.postgres.database import Database

# Seconds.
INTERVAL = 1.0

# What a database that is away or busy ends a probe with.
EXPECTED = (ServiceError, TimeoutError, asyncio.CancelledError)

log = structlog.get_logger()


async def tell(
    servicer: health.aio.HealthServicer, services: Collection[ServiceDescriptor], *, serving: bool
) -> None:
    """Tell whoever asks for one of the services whether it serves."""
    statuses = health_pb2.HealthCheckResponse
    for service in services:
        await servicer.set(service.full_name, statuses.SERVING if serving else statuses.NOT_SERVING)


async def keep_readiness(
    services: Collection[ServiceDescriptor],
    servicer: health.aio.HealthServicer,
    database: Database,
    *,
    patience: float,
) -> NoReturn:
    """Keep the health of the services, which all need the database, true until cancelled.

    The database is given `patience` (seconds) to answer. The health of "" (the process)
    and of what needs no database is not touched: restarting does not bring one back.

    Raises what the probe failed with, if it was not the database's being away or busy.
    """
    ready: bool | None = None
    probe: asyncio.Task[Any] | None = None
    while True:
        was_ready = ready
        # A server that hangs answers neither this nor its own timeouts, so the probe
        # is not awaited for longer, and there is only ever one.
        probe = probe or asyncio.create_task(database.fetch("SELECT 1"))
        await asyncio.wait({probe}, timeout=patience)
        failure: BaseException | None = TimeoutError("no answer in time")
        if probe.done():
            failure = asyncio.CancelledError() if probe.cancelled() else probe.exception()
            probe = None
        # Busy is not away.
        ready = failure is None or isinstance(failure, Overloaded)
        if ready is not was_ready:
            await tell(servicer, services, serving=ready)
            if not ready:
                log.warning("not ready", error=str(failure))
            elif was_ready is False:
                log.info("ready again")
        if failure is not None and not isinstance(failure, EXPECTED):
            raise failure
        await asyncio.sleep(INTERVAL)
