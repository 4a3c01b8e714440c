"""Deletes rows of all organizations after their retention period; runs in workers."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import LiteralString, NoReturn

import structlog

from service.errors import ServiceError
from service.postgres.database import Database

BATCH = 1000
# Seconds.
INTERVAL = 10.0

# An index by time finds the oldest rows. Rows are never updated, so their ctid is stable. The
# scan starts at the time of the last deleted row, so that it does not pass dead rows again.
_PURGE: LiteralString = """
    DELETE FROM public.{table}
    WHERE ctid = ANY (ARRAY(
        SELECT old.ctid
        FROM public.{table} old
        WHERE old.{time} < now() - %(keep)s::interval AND old.{time} >= %(since)s::timestamptz
        ORDER BY old.{time}
        LIMIT %(limit)s
    ))
    RETURNING {time}
"""

log = structlog.get_logger()


class Purge:
    """Deletes rows of a table once the column `time` is older than `keep`.

    A row that is inserted with an earlier time than a row already deleted is deleted after
    the next start.
    """

    def __init__(
        self, database: Database, *, table: LiteralString, time: LiteralString, keep: timedelta
    ) -> None:
        self._database = database
        self._table = table
        self._statement = _PURGE.format(table=table, time=time)
        self._keep = keep
        self._since = datetime.min.replace(tzinfo=UTC)

    async def run(self) -> NoReturn:
        """Delete until cancelled."""
        failing = False
        while True:
            try:
                purged = await self.purge()
            except ServiceError as error:
                if not failing:
                    log.warning("purge failed", table=self._table, error=error.message)
                failing, purged = True, 0
            else:
                failing = False
            if purged < BATCH:
                await asyncio.sleep(INTERVAL)

    async def purge(self) -> int:
        """Delete up to BATCH rows and return how many. Raises ServiceError."""
        parameters = {"keep": self._keep, "limit": BATCH, "since": self._since}
        purged = await self._database.fetch_across(self._statement, parameters)
        self._since = max((time for (time,) in purged), default=self._since)
        return len(purged)
