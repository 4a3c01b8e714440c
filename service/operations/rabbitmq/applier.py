"""Ends the operations that RabbitMQ keeps: applies them, or stores why it cannot be done.

What comes again is passed over, by the results in the database: so each operation takes
effect once, also when a worker that was stopped for long goes on with messages that others
have had meanwhile.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import psycopg
import structlog

from runtime.backoff import Backoff
from service.errors import LockTimeout, ServiceError
from service.metrics import Metrics
from service.operations.operation import MAX_ATTEMPTS
from service.operations.rabbitmq.messages import QueuedOperation
from service.postgres.database import Database

# With true each organization's lock is waited for; else those that are locked are left out.
_APPLY = """
    SELECT r.organization_id, CASE
        WHEN %s::boolean
            OR pg_try_advisory_xact_lock(organization_lock_key(r.organization_id))
        THEN (SELECT true FROM apply_operations(r.organization_id, r.operations))
        ELSE false
    END
    FROM json_to_recordset(%s::json) AS r (organization_id text, operations json)
"""

_REFUSE = """
    SELECT refuse_operation(r.organization_id, r.operation_id, r.accepted_at, r.write, %s::text)
    FROM json_to_recordset(%s::json)
    AS r (organization_id text, operation_id uuid, accepted_at timestamptz, write json)
"""

# Seconds before the database is tried again, and before a locked organization is.
RETRY_DELAY = 1.0
BUSY_DELAY = 0.25

LOOP = "apply operations in RabbitMQ"

log = structlog.get_logger()


class OperationApplier:
    """Every method goes on until the database has answered, however long it is away."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._backoff = Backoff(LOOP, metrics.unexpected_errors)
        # One call at a time waits for a lock: the connections are for those that need not.
        self._waiting = asyncio.Lock()

    async def wait_for_database(self) -> None:
        """Return once it answers."""
        while True:
            try:
                await self._database.fetch("SELECT 1")
            except (ServiceError, psycopg.Error) as error:
                await self._pause(error)
            else:
                self._backoff.succeeded()
                return

    async def apply(self, operations: Sequence[QueuedOperation]) -> list[QueuedOperation]:
        """End operations, those of each organization in order.

        Returns those of which the database can store nothing, not even that they failed.
        """
        by_organization: dict[str, list[QueuedOperation]] = defaultdict(list)
        for operation in operations:
            by_organization[operation["organization_id"]].append(operation)
        left = list(by_organization)
        if len(left) > 1:
            try:
                found = await self._call(by_organization, wait=False)
                left = [organization_id for organization_id, done in found if not done]
            except (ServiceError, psycopg.Error) as error:
                log.warning("operations not applied together", error=str(error))
        unfit: list[QueuedOperation] = []
        for organization_id in left:
            unfit += await self._apply_one(organization_id, by_organization[organization_id])
        return unfit

    async def refuse(
        self, operations: Sequence[QueuedOperation], failure: str
    ) -> list[QueuedOperation]:
        """End those operations that are not done as FAILED; returns what apply returns."""
        unfit: list[QueuedOperation] = []
        for operation in operations:
            log.error(
                "operation given up",
                organization=operation["organization_id"],
                operation=operation["operation_id"],
                failure=failure,
            )
            while True:
                try:
                    await self._database.fetch(
                        _REFUSE, (failure, orjson.dumps([operation]).decode())
                    )
                except (psycopg.DataError, psycopg.IntegrityError):
                    unfit.append(operation)
                except (ServiceError, psycopg.Error) as error:
                    log.warning("operation not ended", error=str(error))
                    await self._pause(error)
                    continue
                break
        return unfit

    async def _apply_one(
        self, organization_id: str, operations: Sequence[QueuedOperation]
    ) -> list[QueuedOperation]:
        """End the operations of one organization, waiting for its lock."""
        attempts = 0
        told = False
        while True:
            try:
                [(_, done)] = await self._call({organization_id: operations}, wait=False)
                if not done:
                    async with self._waiting:
                        await self._call({organization_id: operations}, wait=True)
            except LockTimeout:
                await asyncio.sleep(BUSY_DELAY)
            except (ServiceError, psycopg.Error) as error:
                if not told:
                    log.warning(
                        "operations not applied", organization=organization_id, error=str(error)
                    )
                told = True
                unfit_data = isinstance(error, psycopg.DataError | psycopg.IntegrityError)
                # What takes too long may be the fault of an operation. A missing permission,
                # say, or a server in trouble is not, and is waited for.
                attempts += isinstance(error.__cause__, psycopg.errors.QueryCanceled)
                if (attempts > 1 or unfit_data) and len(operations) > 1:
                    unfit: list[QueuedOperation] = []
                    for operation in operations:
                        unfit += await self._apply_one(organization_id, [operation])
                    return unfit
                if unfit_data:
                    return await self.refuse(operations, str(error))
                if attempts == MAX_ATTEMPTS:
                    return await self.refuse(
                        operations, f"not applied in {attempts} attempts: {error}"
                    )
                await self._pause(error)
            else:
                self._backoff.succeeded()
                return []

    async def _pause(self, error: Exception) -> None:
        expected = isinstance(error, ServiceError)
        await asyncio.sleep(RETRY_DELAY if expected else self._backoff.failed(error))

    async def _call(
        self, by_organization: Mapping[str, Sequence[QueuedOperation]], *, wait: bool
    ) -> Sequence[tuple[Any, ...]]:
        parameter = [
            {"organization_id": organization_id, "operations": operations}
            for organization_id, operations in by_organization.items()
        ]
        return await self._database.fetch(_APPLY, (wait, orjson.dumps(parameter).decode()))
