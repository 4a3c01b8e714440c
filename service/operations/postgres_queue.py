"""The queue in PostgreSQL: the table queued_operations, applied by the functions beside it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import psycopg
import structlog

from service.database import Database
from service.errors import LockTimeout, ServiceError
from service.metrics import Metrics
from service.operations.operation import Operation
from service.writes import write_parameter

_APPEND = """
    INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)
    SELECT organization_id, operation_id, accepted_at, write
    FROM json_to_recordset(%s::json)
    AS r (organization_id text, operation_id uuid, accepted_at timestamptz, write json)
"""

_LEASE = """
    SELECT organization_id, fence, attempts
    FROM lease_operations(%s::text, %s::integer, make_interval(secs => %s::float8))
"""

_APPLY = """
    SELECT organization_id, status, applied, delay
    FROM apply_queued_operations(
        %s::json, %s::integer, make_interval(secs => %s::float8)
    )
"""

# Not counted as an attempt: it was not the operations' fault.
_GIVE_BACK = """
    UPDATE operation_leases l
    SET leased_until = clock_timestamp() + make_interval(secs => %s::float8),
        attempts = l.attempts - 1
    FROM json_to_recordset(%s::json) AS r (organization_id text, fence bigint)
    WHERE l.organization_id = r.organization_id AND l.fence = r.fence
"""

_GIVE_UP = "SELECT give_up_operation(%s::text, %s::bigint, %s::text)"

# Attempts from which on an organization's operations go one at a time, and by which the
# first of them is given up.
ALONE_AFTER = 2
MAX_ATTEMPTS = 10

# Seconds before a locked organization is tried again, and before anything is, in trouble.
BUSY_DELAY = 0.25
TROUBLE_DELAY = 1.0

log = structlog.get_logger()


class PostgresQueue:
    """Appends operations; a row each, all in one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, operations: Sequence[Operation]) -> Sequence[None]:
        """Raises DatabaseUnavailable, Overloaded."""
        rows = [
            {
                "organization_id": operation.organization_id,
                "operation_id": operation.id,
                "accepted_at": operation.accepted_at,
                "write": write_parameter(operation.write),
            }
            for operation in operations
        ]
        await self._database.fetch(_APPEND, (orjson.dumps(rows).decode(),))
        return [None] * len(operations)


@dataclass(frozen=True, slots=True)
class _Lease:
    """The right to apply an organization's operations, until somebody has a higher fence."""

    organization_id: str
    fence: int
    attempts: int = 0


class PostgresQueueWorker:
    """Applies queued operations: leases organizations, then applies what they have.

    A lease and a batch are a call of the database each, so a worker that is stopped or
    killed between two calls has nothing half-done, and one whose lease was taken over
    meanwhile changes nothing. `lanes` organizations, or groups of them, are worked on at a
    time; `lease` is in seconds, longer than any call of the database may take.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        *,
        lanes: int,
        max_organizations: int,
        max_batch: int,
        lease: float,
        poll_interval: float,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._lanes = lanes
        self._max_organizations = max_organizations
        self._max_batch = max_batch
        self._lease = lease
        self._poll_interval = poll_interval
        # One lane at a time looks for work; the order of leasing goes round.
        self._looking = asyncio.Lock()
        self._last_leased = ""

    async def run(self) -> None:
        """Work until cancelled; what is leased then is given back."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(self._lanes):
                lanes.create_task(self._run_lane())

    async def _run_lane(self) -> None:
        leases: list[_Lease] = []
        in_trouble = False
        try:
            while True:
                try:
                    leases = leases or await self._find_work()
                    leases = await self._apply(leases)
                    in_trouble = False
                except LockTimeout:
                    await self._give_back(leases)
                    leases = []
                except (ServiceError, psycopg.Error) as error:
                    # The leases end by themselves, and count as attempts: what went wrong
                    # may be the first operation's fault.
                    leases = []
                    if not in_trouble:
                        log.warning("operations not applied", error=str(error))
                    in_trouble = True
                    await asyncio.sleep(TROUBLE_DELAY)
        finally:
            if leases:
                await self._give_back(leases, delay=0)

    async def _find_work(self) -> list[_Lease]:
        async with self._looking:
            while True:
                found = await self._database.fetch(
                    _LEASE, (self._last_leased, self._max_organizations, self._lease)
                )
                if found:
                    self._last_leased = found[-1][0]
                    return [_Lease(*row) for row in found]
                await asyncio.sleep(self._poll_interval)

    async def _apply(self, leases: list[_Lease]) -> list[_Lease]:
        """Apply a batch of each organization; return the leases that go on."""
        for lease in leases:
            if lease.attempts >= MAX_ATTEMPTS:
                await self._give_up(lease)
        parameter = [
            {
                "organization_id": lease.organization_id,
                "fence": lease.fence,
                "only_one": lease.attempts >= ALONE_AFTER,
            }
            for lease in leases
        ]
        found = await self._database.fetch(
            _APPLY, (orjson.dumps(parameter).decode(), self._max_batch, self._lease)
        )
        kept: list[_Lease] = []
        applied = 0
        for lease, (organization_id, status, count, delay) in zip(leases, found, strict=True):
            applied += count
            if delay is not None:
                self._metrics.operation_delay_seconds.observe(delay)
            if status == "MORE":
                kept.append(_Lease(organization_id, lease.fence))
            elif status == "BUSY":
                # By itself it waits for the lock, in turn with those that write.
                kept += await self._apply([lease])
        if applied:
            self._metrics.applied_together.observe(applied)
        return kept

    async def _give_up(self, lease: _Lease) -> None:
        log.error("operation given up", organization=lease.organization_id)
        await self._database.fetch(
            _GIVE_UP,
            (
                lease.organization_id,
                lease.fence,
                f"not applied in {MAX_ATTEMPTS} attempts, each of which ended without an answer",
            ),
        )

    async def _give_back(self, leases: list[_Lease], *, delay: float = BUSY_DELAY) -> None:
        parameter = [
            {"organization_id": lease.organization_id, "fence": lease.fence} for lease in leases
        ]
        await self._database.fetch(_GIVE_BACK, (delay, orjson.dumps(parameter).decode()))
