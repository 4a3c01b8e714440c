"""Applies the operations that are queued in PostgreSQL."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic, time_ns
from typing import NoReturn

import orjson
import psycopg
import structlog

from runtime.backoff import Backoff
from runtime.tracing import current_tracer
from service.errors import LockTimeout, Overloaded, ServiceError
from service.metrics import Metrics
from service.operations.operation import MAX_ATTEMPTS
from service.postgres.database import Database
from service.postgres.notifications import Wakeup
from service.postgres.rows import Row

_LEASE = """
    SELECT organization_id, fence, attempts
    FROM lease_operations(%s::text, %s::integer, make_interval(secs => %s::float8))
"""

# Where the function does not return traces, in a database of the previous version, the name is that
# of `absent`.
_APPLY = """
    SELECT applied.*
    FROM (SELECT NULL::text[] AS traces) AS absent
    CROSS JOIN LATERAL (
        SELECT organization_id, status, applied, delay, traces
        FROM apply_queued_operations(
            %s::json, %s::integer, make_interval(secs => %s::float8)
        )
    ) AS applied
"""

# In a distributed database: a plain call for one organization, which its node runs.
_APPLY_ONE = """
    SELECT status, applied, delay, traces
    FROM apply_queued(
        %s::text, %s::bigint, %s::boolean, %s::integer, make_interval(secs => %s::float8)
    )
"""

_RELEASE = "SELECT release_operations(%s::json)"

_GIVE_UP = "SELECT give_up_operation(%s::text, %s::bigint, %s::text)"

_COUNT = "SELECT count_queued_operations(100000)"
COUNT_INTERVAL = 10.0

# Seconds before the next call for an operation alone whose call got no response. The delay
# doubles with each such call.
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0

# Seconds before the next attempt for a locked organization, and after an error.
BUSY_DELAY = 0.25
ERROR_DELAY = 1.0

LOOP = "apply operations"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Lease:
    """The right to apply an organization's operations, until another worker has a higher fence.

    `attempts` counts the calls without a response since operations were last applied.
    """

    organization_id: str
    fence: int
    attempts: int = 0


class PostgresQueueWorker:
    """Leases organizations that have queued operations, and applies the operations in batches.

    Leasing and applying a batch are one database call each. A worker that is stopped or killed
    between two calls leaves nothing half-done, and a worker that has lost its lease changes
    nothing.

    Up to `concurrency` calls run at a time, each for up to `max_organizations`. At most one of
    them is for a single organization: such a call may be slow, as it waits for a lock or has
    operations whose earlier call got no response.

    `lease` and `poll_interval` are in seconds. A lease is not taken over during a call. `wakeup` is
    that of queued operations. `changed` is called after operations were applied.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        *,
        wakeup: Wakeup,
        changed: Callable[[], None],
        concurrency: int,
        max_organizations: int,
        max_batch: int,
        lease: float,
        poll_interval: float,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._wakeup = wakeup
        self._changed = changed
        self._concurrency = concurrency
        self._max_organizations = max_organizations
        self._max_batch = max_batch
        self._lease = lease
        self._poll_interval = poll_interval
        # One task at a time leases, in the order of organizations, starting after the last one.
        self._leasing = asyncio.Lock()
        self._last_leased = ""
        self._polled_at = 0.0
        # Held during calls for a single organization.
        self._alone = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._failing = False
        self._backoff = Backoff(LOOP, metrics.unexpected_errors)

    async def count(self) -> NoReturn:
        """Update the metric of queued operations, until cancelled."""
        while True:
            try:
                [(waiting,)] = await self._database.fetch_across(_COUNT)
            except ServiceError:
                pass  # logged where operations are applied
            else:
                self._metrics.queued_operations.set(waiting)
            await asyncio.sleep(COUNT_INTERVAL)

    async def run(self) -> None:
        """Apply operations until cancelled, then finish running calls and release the leases."""
        self._stopping.clear()
        loops = [asyncio.create_task(self._apply_queued()) for _ in range(self._concurrency)]
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping.set()
            self._wakeup.wake()
            await asyncio.wait(loops)
        for loop in loops:
            loop.result()

    async def _apply_queued(self) -> None:
        leases: list[_Lease] = []
        while not self._stopping.is_set():
            try:
                try:
                    leases += await self._lease_more(leases)
                except (ServiceError, psycopg.Error) as error:
                    await self._wait_after(error)
                leases = await self._apply(leases)
            except Exception as error:  # noqa: BLE001  the other tasks continue
                leases = []  # they expire
                await self._wait(self._backoff.failed(error))
        try:
            await self._release(leases)
        except Exception as error:  # noqa: BLE001  the leases expire
            self._backoff.failed(error)

    async def _lease_more(self, leases: list[_Lease]) -> list[_Lease]:
        """Lease further organizations. Without any lease, wait until there are some."""
        recently = monotonic() < self._polled_at + self._poll_interval
        if self._database.distributed and not recently:
            # One organization has all the room: after a while it is another one's turn.
            await self._release(leases)
            leases.clear()
        room = self._max_organizations - len(leases)
        if leases and (not room or recently or self._leasing.locked()):
            return []
        async with self._leasing:
            while not self._stopping.is_set():
                found = await self._database.fetch_across(
                    _LEASE, (self._last_leased, room, self._lease)
                )
                self._polled_at = monotonic()
                if found:
                    self._last_leased = found[-1][0]
                if found or leases:
                    return [_Lease(*row) for row in found]
                # What was accepted meanwhile has already waited for the notification.
                share = 0.5 if self._wakeup.listening else 1.0
                await self._wait(share * self._poll_interval)
                await self._wakeup.wait()
        return []

    async def _apply(self, leases: list[_Lease]) -> list[_Lease]:
        """Apply a batch of each organization. Returns the leases with further operations."""
        alone = [lease for lease in leases if lease.attempts]
        together = [lease for lease in leases if not lease.attempts]
        kept, busy = await self._call(together) if together else ([], [])
        # A call for one organization waits for its lock, in turn with synchronous writes.
        alone += busy
        if not alone:
            return kept
        if self._alone.locked():
            await self._release(alone, delay=BUSY_DELAY)
            return kept
        async with self._alone:
            await self._release(kept)
            return await self._apply_alone(alone)

    async def _apply_alone(self, leases: list[_Lease]) -> list[_Lease]:
        """Apply operations in a call for each organization, for up to half of the lease time."""
        random.shuffle(leases)  # so that no organization is always the last
        kept: list[_Lease] = []
        end = monotonic() + self._lease / 2
        while leases and monotonic() < end and not self._stopping.is_set():
            lease = leases.pop()
            try:
                if lease.attempts >= MAX_ATTEMPTS:
                    await self._give_up(lease)
                    lease = replace(lease, attempts=1)
            except (ServiceError, psycopg.Error) as error:
                await self._wait_after(error)
                await self._release([lease])
            else:
                kept += (await self._call([lease]))[0]
        await self._release(leases, delay=BUSY_DELAY)
        return kept

    async def _call(self, leases: list[_Lease]) -> tuple[list[_Lease], list[_Lease]]:
        """Apply a batch of each organization in one call.

        Returns the leases with further operations, and those of locked organizations. After an
        error all are released.
        """
        began = time_ns()
        try:
            found = await self._apply_in_database(leases)
        except (ServiceError, psycopg.Error) as error:
            await self._release_after(leases, error)
            return [], []
        self._failing = False
        self._backoff.succeeded()
        kept: list[_Lease] = []
        busy: list[_Lease] = []
        applied = 0
        traces: list[str] = []
        for lease, (_, status, count, delay, sampled) in zip(leases, found, strict=True):
            applied += count
            traces += sampled or ()
            if delay is not None:
                self._metrics.operation_delay_seconds.observe(delay)
            if status == "MORE":
                kept.append(replace(lease, attempts=0))
            elif status == "BUSY":
                busy.append(lease)
        if applied:
            self._metrics.applied_together.observe(applied)
            self._changed()
        if (tracer := current_tracer.get()) is not None:
            tracer.record_shared("apply operation", "apply operations", traces, began=began)
        return kept, busy

    async def _apply_in_database(self, leases: list[_Lease]) -> list[Row]:
        """Return status, applied, delay and traces for each organization, after its id.

        A distributed database gets one lease at a time.
        """
        if self._database.distributed:
            [lease] = leases
            parameters = (
                lease.organization_id,
                lease.fence,
                lease.attempts > 0,
                self._max_batch,
                self._lease,
            )
            found = await self._database.fetch_across(_APPLY_ONE, parameters)
            return [(lease.organization_id, *row) for row in found]
        parameter = [
            {
                "organization_id": lease.organization_id,
                "fence": lease.fence,
                "only_one": lease.attempts > 0,
            }
            for lease in leases
        ]
        return await self._database.fetch_across(
            _APPLY, (orjson.dumps(parameter).decode(), self._max_batch, self._lease)
        )

    async def _release_after(self, leases: list[_Lease], error: Exception) -> None:
        """Release leases after a failed call. Whether it applied operations is not known."""
        locked = isinstance(error, LockTimeout)
        if len(leases) > 1:  # calls for each of them will show which one caused the error
            await self._release([replace(lease, attempts=1) for lease in leases])
        elif not locked and _may_be_caused_by_operation(error):
            [lease] = leases
            delay = min(FIRST_DELAY * 2**lease.attempts, LONGEST_DELAY)
            await self._release([replace(lease, attempts=lease.attempts + 1)], delay=delay)
        else:
            await self._release(leases, delay=BUSY_DELAY)
        if not locked:
            await self._wait_after(error)

    async def _give_up(self, lease: _Lease) -> None:
        failure = f"not applied in {MAX_ATTEMPTS} calls, none of which got a response"
        [(operation_id,)] = await self._database.fetch_across(
            _GIVE_UP, (lease.organization_id, lease.fence, failure)
        )
        log.error(
            "operation given up", organization=lease.organization_id, operation=str(operation_id)
        )

    async def _release(self, leases: list[_Lease], *, delay: float = 0) -> None:
        """Release leases; the organizations can be leased again after `delay` (seconds).

        Retries until the database responds or the leases have expired.
        """
        parameter = [
            {
                "organization_id": lease.organization_id,
                "fence": lease.fence,
                "attempts": lease.attempts,
                "delay": delay,
            }
            for lease in leases
        ]
        end = monotonic() + self._lease
        while leases and monotonic() < end:
            try:
                await self._database.fetch_across(_RELEASE, (orjson.dumps(parameter).decode(),))
            except (ServiceError, psycopg.Error) as error:
                if self._stopping.is_set():
                    return
                await self._wait_after(error)
            else:
                self._wakeup.wake_in(delay)
                return

    async def _wait_after(self, error: Exception) -> None:
        """Log an error, unless an expected one was logged before, and wait."""
        if not isinstance(error, ServiceError):
            await self._wait(self._backoff.failed(error))
            return
        if not self._failing:
            log.warning("operations not applied", error=str(error))
        self._failing = True
        await self._wait(ERROR_DELAY)

    async def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until the worker stops."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def _may_be_caused_by_operation(error: Exception) -> bool:
    """Return whether an operation may be the cause of an error.

    True for a timeout, a lost connection or an internal error. False for an error that the
    database reports about itself, such as a full disk.
    """
    state = getattr(error.__cause__ or error, "sqlstate", None)
    return not isinstance(error, Overloaded) and (
        state is None or state.startswith(("08", "57", "XX"))
    )
