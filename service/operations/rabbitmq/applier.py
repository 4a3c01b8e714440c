"""Finishes operations from RabbitMQ: applies them, or stores why they cannot be applied.

The database skips operations that have a result. So each operation takes effect once, even if
its message is redelivered, or a suspended worker resumes with messages that another one has
handled meanwhile.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from typing import Any

import orjson
import psycopg
import structlog

from runtime.backoff import Backoff
from runtime.tracing import current_tracer
from service.errors import LockTimeout, ServiceError
from service.metrics import Metrics
from service.operations.operation import MAX_ATTEMPTS
from service.operations.rabbitmq.messages import QueuedOperation
from service.postgres.database import Database

# With true it waits for the lock of each organization, otherwise it skips those that are locked.
_APPLY = """
    SELECT r.organization_id, CASE
        WHEN %s::boolean
            OR pg_try_advisory_xact_lock(organization_lock_key(r.organization_id))
        THEN (SELECT true FROM apply_operations(r.organization_id, r.operations))
        ELSE false
    END
    FROM json_to_recordset(%s::json) AS r (organization_id text, operations json)
"""

# In a distributed database: a call for one organization, which its node runs. Waits for the lock.
_APPLY_ONE = "SELECT apply_operations(%s::text, %s::json)"

_REFUSE = "SELECT refuse_operation(%s::text, %s::uuid, %s::timestamptz, %s::json, %s::text)"

# Seconds before the next attempt after an error, and for a locked organization.
RETRY_DELAY = 1.0
BUSY_DELAY = 0.25

LOOP = "apply operations in RabbitMQ"

log = structlog.get_logger()


class OperationApplier:
    """Finishes operations in the database. Every method retries until the database responds.

    `changed` is called after operations were applied.
    """

    def __init__(self, database: Database, metrics: Metrics, changed: Callable[[], None]) -> None:
        self._database = database
        self._changed = changed
        self._backoff = Backoff(LOOP, metrics.unexpected_errors)
        # Held while waiting for an organization's lock, so that this takes one connection only.
        self._waiting = asyncio.Lock()

    async def wait_for_database(self) -> None:
        """Wait until the database responds."""
        while True:
            try:
                await self._database.fetch_across("SELECT 1")
            except (ServiceError, psycopg.Error) as error:
                await self._wait_after(error)
            else:
                self._backoff.succeeded()
                return

    async def apply(self, operations: Sequence[QueuedOperation]) -> list[QueuedOperation]:
        """Finish operations, those of each organization in order.

        Returns the unstorable ones: not even their failure could be stored.
        """
        by_organization: dict[str, list[QueuedOperation]] = defaultdict(list)
        for operation in operations:
            by_organization[operation["organization_id"]].append(operation)
        remaining = list(by_organization)
        if len(remaining) > 1 and not self._database.distributed:
            try:
                found = await self._call(by_organization, wait=False)
                remaining = [organization_id for organization_id, done in found if not done]
            except (ServiceError, psycopg.Error) as error:
                log.warning("operations not applied together", error=str(error))
        unstorable: list[QueuedOperation] = []
        for organization_id in remaining:
            unstorable += await self._apply_one(organization_id, by_organization[organization_id])
        return unstorable

    async def refuse(
        self, operations: Sequence[QueuedOperation], failure: str
    ) -> list[QueuedOperation]:
        """Finish operations as FAILED unless they are done. Returns the unstorable ones."""
        unstorable: list[QueuedOperation] = []
        for operation in operations:
            log.error(
                "operation given up",
                organization=operation["organization_id"],
                operation=operation["operation_id"],
                failure=failure,
            )
            parameters = (
                operation["organization_id"],
                operation["operation_id"],
                operation["accepted_at"],
                orjson.dumps(operation["write"]).decode(),
                failure,
            )
            while True:
                try:
                    await self._database.fetch_across(_REFUSE, parameters)
                except (psycopg.DataError, psycopg.IntegrityError):
                    unstorable.append(operation)
                except (ServiceError, psycopg.Error) as error:
                    log.warning("operation not finished", error=str(error))
                    await self._wait_after(error)
                    continue
                break
        return unstorable

    async def _apply_one(
        self, organization_id: str, operations: Sequence[QueuedOperation]
    ) -> list[QueuedOperation]:
        """Finish the operations of one organization, waiting for its lock."""
        attempts = 0
        logged = False
        while True:
            try:
                [(_, done)] = await self._call({organization_id: operations}, wait=False)
                if not done:
                    async with self._waiting:
                        await self._call({organization_id: operations}, wait=True)
            except LockTimeout:
                await asyncio.sleep(BUSY_DELAY)
            except (ServiceError, psycopg.Error) as error:
                if not logged:
                    log.warning(
                        "operations not applied", organization=organization_id, error=str(error)
                    )
                logged = True
                invalid_data = isinstance(error, psycopg.DataError | psycopg.IntegrityError)
                # An operation may cause a timeout. Other errors, such as a missing privilege or
                # an unavailable server, are retried without a limit.
                attempts += isinstance(error.__cause__, psycopg.errors.QueryCanceled)
                if (attempts > 1 or invalid_data) and len(operations) > 1:
                    unstorable: list[QueuedOperation] = []
                    for operation in operations:
                        unstorable += await self._apply_one(organization_id, [operation])
                    return unstorable
                if invalid_data:
                    return await self.refuse(operations, str(error))
                if attempts == MAX_ATTEMPTS:
                    return await self.refuse(
                        operations, f"not applied in {attempts} attempts: {error}"
                    )
                await self._wait_after(error)
            else:
                self._backoff.succeeded()
                return []

    async def _wait_after(self, error: Exception) -> None:
        expected = isinstance(error, ServiceError)
        await asyncio.sleep(RETRY_DELAY if expected else self._backoff.failed(error))

    async def _call(
        self, by_organization: Mapping[str, Sequence[QueuedOperation]], *, wait: bool
    ) -> Sequence[tuple[Any, ...]]:
        began = time_ns()
        found = await self._apply_in_database(by_organization, wait=wait)
        self._changed()
        if (tracer := current_tracer.get()) is not None:
            traces = [
                operation["write"]["trace"]
                for organization_id, done in found
                if done
                for operation in by_organization[organization_id]
                if "trace" in operation["write"]
            ]
            tracer.record_shared("apply operation", "apply operations", traces, began=began)
        return found

    async def _apply_in_database(
        self, by_organization: Mapping[str, Sequence[QueuedOperation]], *, wait: bool
    ) -> Sequence[tuple[Any, ...]]:
        """Return for each organization whether its operations were applied."""
        if self._database.distributed:
            for organization_id, operations in by_organization.items():
                parameters = (organization_id, orjson.dumps(operations).decode())
                await self._database.fetch_across(_APPLY_ONE, parameters)
            return [(organization_id, True) for organization_id in by_organization]
        parameter = [
            {"organization_id": organization_id, "operations": operations}
            for organization_id, operations in by_organization.items()
        ]
        return await self._database.fetch_across(_APPLY, (wait, orjson.dumps(parameter).decode()))
