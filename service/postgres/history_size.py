"""Measures how large the history is, which only grows; runs in workers."""

import asyncio
from typing import LiteralString, NoReturn

import structlog

from service.errors import ServiceError
from service.metrics import Metrics
from service.postgres.database import Database

# Seconds.
INTERVAL = 60.0

# Asks for the sizes of files, and reads none of them.
_SIZE: LiteralString = "SELECT pg_total_relation_size('public.appointment_history')"

log = structlog.get_logger()


class HistorySize:
    """Updates the metric of the history's size."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics

    async def run(self) -> NoReturn:
        """Measure until cancelled."""
        while True:
            try:
                [(size,)] = await self._database.fetch_across(_SIZE)
            except ServiceError as error:
                log.debug("history not measured", error=error.message)
            else:
                self._metrics.history_bytes.set(size)
            await asyncio.sleep(INTERVAL)
