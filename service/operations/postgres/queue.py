"""The queue in PostgreSQL: the table queued_operations. SQL functions apply its operations."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import orjson
import psycopg

from service.errors import ServiceError
from service.operations.operation import Operation, queued_form
from service.postgres.database import Database


class PostgresQueue:
    """Appends operations, one row each, and calls `notify` afterwards.

    All are appended in one transaction. A distributed database has one for each organization, so
    that those of a node that is away fail alone.
    """

    def __init__(self, database: Database, notify: Callable[[], None]) -> None:
        self._database = database
        self._notify = notify

    async def append(self, operations: Sequence[Operation]) -> Sequence[Exception | None]:
        """Insert the operations. Raises DatabaseUnavailable or Overloaded."""
        if self._database.distributed:
            return await self._append_by_organization(operations)
        await self._insert(operations)
        return [None] * len(operations)

    async def _append_by_organization(
        self, operations: Sequence[Operation]
    ) -> Sequence[Exception | None]:
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, operation in enumerate(operations):
            places[operation.organization_id].append(place)
        results: list[Exception | None] = [None] * len(operations)
        for same in places.values():
            try:
                await self._insert([operations[place] for place in same])
            except (ServiceError, psycopg.Error) as error:
                for place in same:
                    results[place] = error
        return results

    async def _insert(self, operations: Sequence[Operation]) -> None:
        rows = [queued_form(operation) for operation in operations]
        await self._database.fetch_across(
            "SELECT queue_operations(%s::json)", (orjson.dumps(rows).decode(),)
        )
        self._notify()
