"""Records that holds have expired; runs in workers.

A hold ends at its time, whether that is recorded or not. The record is for history, and for the
followers of changes.
"""

import asyncio
import random
from collections import defaultdict
from datetime import timedelta
from time import monotonic
from typing import LiteralString, NoReturn

import structlog

from runtime.backoff import log_unexpected
from service.domain import Expire, Outcome, WriteResult
from service.errors import ServiceError
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.notifications import MAX_SLEEP, Wakeup
from service.writes.committer import Committer

LOOP = "expire holds"

# Expired holds that one query looks for.
BATCH = 1000
# The most that one transaction records. Other writes of the organization wait meanwhile.
MAX_WRITES = 100
# Seconds. The shortest poll interval, and how long an organization is left alone after an error.
INTERVAL = 1.0
# Seconds. So that not all workers find a hold at the same moment, and only one of them writes.
SPREAD = 0.25

# A partial index has the holds by their end. Those of the organizations that are being written
# are passed over.
_DUE: LiteralString = """
    SELECT organization_id, appointment_id, now() - hold_until
    FROM public.appointments
    WHERE state = 'HELD' AND ordinal = 0 AND hold_until <= now()
        AND organization_id <> ALL (%(busy)s)
    ORDER BY hold_until
    LIMIT %(limit)s
"""

# Seconds until the next hold ends, none without holds.
_NEXT: LiteralString = """
    SELECT extract(epoch FROM min(hold_until) - now())::double precision
    FROM public.appointments
    WHERE state = 'HELD' AND ordinal = 0
"""

log = structlog.get_logger()


class Expiry:
    """Records expired holds, each by a write of its own.

    Several workers may find the same hold: the first write records its expiry, the others
    change nothing. Organizations do not wait for each other: while the writes of one are under
    way, others are looked for.

    It polls when a hold ends, and when there may be new holds (`wakeup`), but not more often than
    at INTERVAL.
    """

    def __init__(
        self, database: Database, committer: Committer, metrics: Metrics, wakeup: Wakeup
    ) -> None:
        self._database = database
        self._committer = committer
        self._metrics = metrics
        self._wakeup = wakeup
        # The organizations that are being written.
        self._busy: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> NoReturn:
        """Record expired holds until cancelled."""
        try:
            while True:
                if await self._start() < BATCH:
                    await self._pause()
        finally:
            for task in self._busy.values():
                task.cancel()
            await self._committer.drain()

    async def _start(self) -> int:
        """Start to record the holds that are due, and return how many were found."""
        # Before the database reads its clock, so that no delay is measured too short.
        asked_at = monotonic()
        try:
            found = await self._database.fetch_across(
                _DUE, {"busy": list(self._busy), "limit": BATCH}
            )
        except ServiceError as error:
            log.warning("expired holds were not read", error=error.message)
            return 0
        due: defaultdict[str, list[tuple[str, timedelta]]] = defaultdict(list)
        for organization_id, appointment_id, delay in found:
            due[organization_id].append((appointment_id, delay))
        for organization_id, holds in due.items():
            task = asyncio.create_task(self._record(organization_id, holds, asked_at))
            self._busy[organization_id] = task
        return len(found)

    async def _pause(self) -> None:
        """Wait for the next round: for a while, or until an organization can be written again."""
        if self._busy:
            await asyncio.wait(
                self._busy.values(), timeout=INTERVAL, return_when=asyncio.FIRST_COMPLETED
            )
            return
        next_end = await self._next_end()
        await asyncio.sleep(INTERVAL)
        await self._wakeup.wait(max(next_end - INTERVAL, 0.0))

    async def _next_end(self) -> float:
        """Return after how many seconds to poll for the next hold that ends, at most MAX_SLEEP."""
        try:
            [(seconds,)] = await self._database.fetch_across(_NEXT)
        except ServiceError:
            return MAX_SLEEP
        if seconds is None or seconds > MAX_SLEEP:
            return MAX_SLEEP
        return float(seconds) + random.uniform(0, SPREAD)  # noqa: S311  no secret

    async def _record(
        self, organization_id: str, holds: list[tuple[str, timedelta]], asked_at: float
    ) -> None:
        try:
            results = await self._committer.submit_all(
                organization_id, [Expire(id=appointment_id) for appointment_id, _ in holds]
            )
            waited = monotonic() - asked_at
            for (_, delay), result in zip(holds, results, strict=True):
                if isinstance(result, WriteResult) and result.outcome is Outcome.EXPIRED:
                    self._metrics.hold_expiry_delay_seconds.observe(delay.total_seconds() + waited)
            for result in results:
                if isinstance(result, Exception):
                    raise result  # noqa: TRY301  # the first one stands for all
        except ServiceError as error:
            log.warning(
                "expired holds were not recorded",
                organization=organization_id,
                error=error.message,
            )
            await asyncio.sleep(INTERVAL)
        except Exception as error:  # noqa: BLE001  # the other organizations go on
            log_unexpected(
                LOOP, error, self._metrics.unexpected_errors, organization=organization_id
            )
            await asyncio.sleep(INTERVAL)
        finally:
            del self._busy[organization_id]
