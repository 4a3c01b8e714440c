"""A duty of workers: to delete what has been kept for long enough."""

import asyncio
from datetime import timedelta
from typing import LiteralString, NoReturn

import structlog

from service.database import Database
from service.errors import ServiceError

AT_ONCE = 1000
# Seconds.
INTERVAL = 10.0

# An index by time finds the oldest; rows are never changed, so their places hold.
_PURGE: LiteralString = """
    DELETE FROM {table}
    WHERE ctid = ANY (ARRAY(
        SELECT old.ctid
        FROM {table} old
        WHERE old.{time} < now() - %(keep)s::interval
        ORDER BY old.{time}
        LIMIT %(limit)s
    ))
    RETURNING 1
"""

log = structlog.get_logger()


class Purge:
    """Deletes rows of a table when a time in them is long enough ago."""

    def __init__(
        self, database: Database, *, table: LiteralString, time: LiteralString, keep: timedelta
    ) -> None:
        self._database = database
        self._table = table
        self._statement = _PURGE.format(table=table, time=time)
        self._keep = keep

    async def run(self) -> NoReturn:
        """Delete until cancelled."""
        failing = False
        while True:
            try:
                purged = await self._database.fetch(
                    self._statement, {"keep": self._keep, "limit": AT_ONCE}
                )
            except ServiceError as error:
                if not failing:
                    log.warning("old rows stay", table=self._table, error=error.message)
                failing, purged = True, []
            else:
                failing = False
            if len(purged) < AT_ONCE:
                await asyncio.sleep(INTERVAL)
