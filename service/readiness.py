"""Health of the service by `grpc.health.v1`: true to whether the database answers."""

import asyncio
from typing import Any, NoReturn

import structlog
from grpc_health.v1 import health, health_pb2

from service.database import Database
from service.errors import Overloaded

# Seconds.
INTERVAL = 1.0

log = structlog.get_logger()


async def keep_readiness(
    service: str, servicer: health.aio.HealthServicer, database: Database, *, patience: float
) -> NoReturn:
    """Keep the health of a service true, until cancelled.

    The database is given `patience` (seconds) to answer. The health of "" (the process)
    is SERVING as long as it runs: restarting it does not bring a database back.
    """
    serving = health_pb2.HealthCheckResponse.SERVING
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    await servicer.set("", serving)
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
            failure, probe = probe.exception(), None
        # Busy is not away.
        ready = failure is None or isinstance(failure, Overloaded)
        if ready is not was_ready:
            await servicer.set(service, serving if ready else not_serving)
            if not ready:
                log.warning("not ready", error=str(failure))
            elif was_ready is False:
                log.info("ready again")
        await asyncio.sleep(INTERVAL)
