"""Applying what is queued in PostgreSQL."""

import asyncio
import random
from dataclasses import dataclass, replace
from time import monotonic
from typing import NoReturn

import orjson
import psycopg
import structlog

from runtime.backoff import Backoff
from service.errors import LockTimeout, Overloaded, ServiceError
from service.metrics import Metrics
from service.operations.operation import MAX_ATTEMPTS
from service.postgres.database import Database

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

_GIVE_BACK = """
    UPDATE operation_leases l
    SET leased_until = clock_timestamp() + make_interval(secs => r.delay), attempts = r.attempts
    FROM json_to_recordset(%s::json)
    AS r (organization_id text, fence bigint, attempts integer, delay float8)
    WHERE l.organization_id = r.organization_id AND l.fence = r.fence
"""

_GIVE_UP = "SELECT give_up_operation(%s::text, %s::bigint, %s::text)"

_COUNT = "SELECT count_queued_operations(100000)"
COUNT_INTERVAL = 10.0

# Seconds between calls that end without an answer: they double up to the longest.
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0

# Seconds before a locked organization is tried again, and before anything is, in trouble.
BUSY_DELAY = 0.25
TROUBLE_DELAY = 1.0

LOOP = "apply operations"

log = structlog.get_logger()


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
    meanwhile changes nothing. `lanes` calls are under way at a time, each for up to
    `max_organizations`; one of them at most is for an organization alone, which may take
    long: it waits for a lock, or for operations that had no answer before. `lease` is in
    seconds; while a call is under way it cannot be taken over.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        *,
        concurrency: int,
        max_organizations: int,
        max_batch: int,
        lease: float,
        poll_interval: float,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._concurrency = concurrency
        self._max_organizations = max_organizations
        self._max_batch = max_batch
        self._lease = lease
        self._poll_interval = poll_interval
        # One lane at a time looks for work; the order of leasing goes round.
        self._looking = asyncio.Lock()
        self._last_leased = ""
        self._looked_at = 0.0
        self._going_alone = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._in_trouble = False
        self._backoff = Backoff(LOOP, metrics.unexpected_errors)

    async def count(self) -> NoReturn:
        """Tell Prometheus how many operations wait, until cancelled."""
        while True:
            try:
                [(waiting,)] = await self._database.fetch(_COUNT)
            except ServiceError:
                pass  # whoever applies them says it
            else:
                self._metrics.queued_operations.set(waiting)
            await asyncio.sleep(COUNT_INTERVAL)

    async def run(self) -> None:
        """Work until cancelled; calls under way are finished then, and leases given back."""
        self._stopping.clear()
        loops = [asyncio.create_task(self._apply_queued()) for _ in range(self._concurrency)]
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping.set()
            await asyncio.wait(loops)
        for loop in loops:
            loop.result()

    async def _apply_queued(self) -> None:
        leases: list[_Lease] = []
        while not self._stopping.is_set():
            try:
                try:
                    leases += await self._find_work(leases)
                except (ServiceError, psycopg.Error) as error:
                    await self._pause_in_trouble(error)
                leases = await self._apply(leases)
            except Exception as error:  # noqa: BLE001  the other lanes go on
                leases = []  # they end by themselves
                await self._pause(self._backoff.failed(error))
        try:
            await self._give_back(leases)
        except Exception as error:  # noqa: BLE001  they end by themselves
            self._backoff.failed(error)

    async def _find_work(self, leases: list[_Lease]) -> list[_Lease]:
        """Lease organizations besides those that go on; without any, wait for some."""
        room = self._max_organizations - len(leases)
        recently = monotonic() < self._looked_at + self._poll_interval
        if leases and (not room or recently or self._looking.locked()):
            return []
        async with self._looking:
            while not self._stopping.is_set():
                found = await self._database.fetch(_LEASE, (self._last_leased, room, self._lease))
                self._looked_at = monotonic()
                if found:
                    self._last_leased = found[-1][0]
                if found or leases:
                    return [_Lease(*row) for row in found]
                await self._pause(self._poll_interval)
        return []

    async def _apply(self, leases: list[_Lease]) -> list[_Lease]:
        """Apply a batch of each organization; return the leases that go on."""
        alone = [lease for lease in leases if lease.attempts]
        together = [lease for lease in leases if not lease.attempts]
        kept, busy = await self._call(together) if together else ([], [])
        # By itself it waits for the lock, in turn with those that write.
        alone += busy
        if not alone:
            return kept
        if self._going_alone.locked():
            await self._give_back(alone, delay=BUSY_DELAY)
            return kept
        async with self._going_alone:
            await self._give_back(kept)
            return await self._apply_alone(alone)

    async def _apply_alone(self, leases: list[_Lease]) -> list[_Lease]:
        """Apply operations of one organization after the other, as long as the leases last."""
        random.shuffle(leases)  # so that none is always the last
        kept: list[_Lease] = []
        end = monotonic() + self._lease / 2
        while leases and monotonic() < end and not self._stopping.is_set():
            lease = leases.pop()
            try:
                if lease.attempts >= MAX_ATTEMPTS:
                    await self._give_up(lease)
                    lease = replace(lease, attempts=1)
            except (ServiceError, psycopg.Error) as error:
                await self._pause_in_trouble(error)
                await self._give_back([lease])
            else:
                kept += (await self._call([lease]))[0]
        await self._give_back(leases, delay=BUSY_DELAY)
        return kept

    async def _call(self, leases: list[_Lease]) -> tuple[list[_Lease], list[_Lease]]:
        """Apply a batch of each organization; return the leases that go on, and the busy ones."""
        parameter = [
            {
                "organization_id": lease.organization_id,
                "fence": lease.fence,
                "only_one": lease.attempts > 0,
            }
            for lease in leases
        ]
        try:
            found = await self._database.fetch(
                _APPLY, (orjson.dumps(parameter).decode(), self._max_batch, self._lease)
            )
        except (ServiceError, psycopg.Error) as error:
            await self._leave(leases, error)
            return [], []
        self._in_trouble = False
        self._backoff.succeeded()
        kept: list[_Lease] = []
        busy: list[_Lease] = []
        applied = 0
        for lease, (_, status, count, delay) in zip(leases, found, strict=True):
            applied += count
            if delay is not None:
                self._metrics.operation_delay_seconds.observe(delay)
            if status == "MORE":
                kept.append(replace(lease, attempts=0))
            elif status == "BUSY":
                busy.append(lease)
        if applied:
            self._metrics.applied_together.observe(applied)
        return kept, busy

    async def _leave(self, leases: list[_Lease], error: Exception) -> None:
        """Give leases back after a call that failed; nothing is known to be written."""
        locked = isinstance(error, LockTimeout)
        if len(leases) > 1:  # which of them it was about will show
            await self._give_back([replace(lease, attempts=1) for lease in leases])
        elif not locked and _may_be_its_fault(error):
            [lease] = leases
            delay = min(FIRST_DELAY * 2**lease.attempts, LONGEST_DELAY)
            await self._give_back([replace(lease, attempts=lease.attempts + 1)], delay=delay)
        else:
            await self._give_back(leases, delay=BUSY_DELAY)
        if not locked:
            await self._pause_in_trouble(error)

    async def _give_up(self, lease: _Lease) -> None:
        failure = f"not applied in {MAX_ATTEMPTS} calls, each of which ended without an answer"
        [(operation_id,)] = await self._database.fetch(
            _GIVE_UP, (lease.organization_id, lease.fence, failure)
        )
        log.error(
            "operation given up", organization=lease.organization_id, operation=str(operation_id)
        )

    async def _give_back(self, leases: list[_Lease], *, delay: float = 0) -> None:
        """Let anybody lease the organizations after a time (seconds).

        It is tried until the database answers, or the leases have ended by themselves.
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
                await self._database.fetch(_GIVE_BACK, (orjson.dumps(parameter).decode(),))
            except (ServiceError, psycopg.Error) as error:
                if self._stopping.is_set():
                    return
                await self._pause_in_trouble(error)
            else:
                return

    async def _pause_in_trouble(self, error: Exception) -> None:
        if not isinstance(error, ServiceError):
            await self._pause(self._backoff.failed(error))
            return
        if not self._in_trouble:
            log.warning("operations not applied", error=str(error))
        self._in_trouble = True
        await self._pause(TROUBLE_DELAY)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not when it is time to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def _may_be_its_fault(error: Exception) -> bool:
    """Tell whether it may be the operation that keeps the database from answering.

    A call that took too long, a lost connection, an internal error; but not what the
    database says of itself, such as that its disk is full.
    """
    state = getattr(error.__cause__ or error, "sqlstate", None)
    return not isinstance(error, Overloaded) and (
        state is None or state.startswith(("08", "57", "XX"))
    )
