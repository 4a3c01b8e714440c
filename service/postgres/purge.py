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

# An index by time finds the oldest rows. The scan starts at the time of the last deleted row, so
# that it does not pass dead rows again.
_LAST: LiteralString = """
    SELECT max({time})
    FROM (
        SELECT {time}
        FROM public.{table}
        WHERE {time} < now() - %(keep)s::interval AND {time} >= %(since)s::timestamptz
        ORDER BY {time}
        LIMIT %(limit)s
    ) AS old
"""

_PURGE: LiteralString = """
    DELETE FROM public.{table}
    WHERE {time} BETWEEN %(since)s::timestamptz AND %(last)s::timestamptz
    RETURNING 1
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
        self._last = _LAST.format(table=table, time=time)
        self._purge = _PURGE.format(table=table, time=time)
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
        """Delete BATCH rows, or the rest, and return how many. Raises ServiceError.

        All that have the time of the last one are deleted too.
        """
        since = self._since
        [(last,)] = await self._database.fetch_across(
            self._last, {"keep": self._keep, "limit": BATCH, "since": since}
        )
        if last is None:
            return 0
        deleted = await self._database.fetch_across(self._purge, {"since": since, "last": last})
        self._since = last
        return len(deleted)
