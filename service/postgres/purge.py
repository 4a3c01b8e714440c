"""A duty of workers: to delete what has been kept for long enough."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import LiteralString, NoReturn

import structlog

from service.errors import ServiceError
from service.postgres.database import Database

AT_ONCE = 1000
# Seconds.
INTERVAL = 10.0

# An index by time finds the oldest; rows are never changed, so their places hold. It begins
# at the time of the latest that was deleted: dead rows before it are passed no more.
_PURGE: LiteralString = """
    DELETE FROM {table}
    WHERE ctid = ANY (ARRAY(
        SELECT old.ctid
        FROM {table} old
        WHERE old.{time} < now() - %(keep)s::interval AND old.{time} >= %(since)s::timestamptz
        ORDER BY old.{time}
        LIMIT %(limit)s
    ))
    RETURNING {time}
"""

log = structlog.get_logger()


class Purge:
    """Deletes rows of a table when a time in them is long enough ago.

    A row that comes later than its turn, with an earlier time than one that was deleted, is
    deleted after the next start.
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
                    log.warning("old rows stay", table=self._table, error=error.message)
                failing, purged = True, 0
            else:
                failing = False
            if purged < AT_ONCE:
                await asyncio.sleep(INTERVAL)

    async def purge(self) -> int:
        """Delete up to AT_ONCE rows and return how many. Raises ServiceError."""
        parameters = {"keep": self._keep, "limit": AT_ONCE, "since": self._since}
        purged = await self._database.fetch(self._statement, parameters)
        self._since = max((time for (time,) in purged), default=self._since)
        return len(purged)
