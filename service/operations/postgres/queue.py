"""The queue in PostgreSQL: the table queued_operations. SQL functions apply its operations."""

from collections.abc import Callable, Sequence

import orjson

from service.operations.operation import Operation, queued_form
from service.postgres.database import Database


class PostgresQueue:
    """Appends operations, one row each, all in one transaction, and calls `notify` afterwards."""

    def __init__(self, database: Database, notify: Callable[[], None]) -> None:
        self._database = database
        self._notify = notify

    async def append(self, operations: Sequence[Operation]) -> Sequence[None]:
        """Insert the operations. Raises DatabaseUnavailable or Overloaded."""
        rows = [queued_form(operation) for operation in operations]
        await self._database.fetch_across(
            "SELECT queue_operations(%s::json)", (orjson.dumps(rows).decode(),)
        )
        self._notify()
        return [None] * len(operations)
