"""Reads the states and results of operations, and waits for results."""

import asyncio
import contextvars
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import LiteralString
from uuid import UUID

from runtime.backoff import Backoff
from service.domain import Outcome, WriteResult
from service.errors import EpochEnded, OperationFailed, OperationNotFound, ServiceError
from service.metrics import Metrics
from service.operations.operation import OperationState, time_of
from service.postgres import rows
from service.postgres.database import Database
from service.postgres.epochs import began
from service.postgres.rows import Row
from service.writes.store import refusal

# Finished and queued operations, in one snapshot, each limited to the size of the result.
_OPERATIONS: LiteralString = f"""
    SELECT o.operation_id, o.accepted_at, o.wanted_id, o.finished_at,
        o.outcome, o.organization_revision, o.conflicts, o.alternatives, o.failure,
        -- A negative revision is that of a hold that had expired without a change of its own.
        CASE WHEN o.left_revision < 0 THEN o.finished_at END,
        {rows.APPOINTMENT}
    FROM (
        (
            SELECT organization_id, operation_id, accepted_at, appointment_id AS wanted_id,
                finished_at, outcome, organization_revision, revision AS left_revision,
                conflicts, alternatives, failure
            FROM operations
            WHERE organization_id = %(organization_id)s {{only}} {{done}}
            ORDER BY operation_id DESC
            LIMIT %(limit)s
        )
        UNION ALL
        (
            SELECT organization_id, operation_id, accepted_at, write ->> 'id', NULL,
                NULL, NULL, NULL, NULL, NULL, NULL
            FROM queued_operations
            WHERE organization_id = %(organization_id)s {{only}} {{queued}}
            ORDER BY operation_id DESC
            LIMIT %(limit)s
        )
    ) AS o
    -- The order makes the planner use the primary key, also while the table is small.
    LEFT JOIN LATERAL (
        SELECT {rows.APPOINTMENT}
        FROM appointment_history h
        WHERE h.organization_id = %(organization_id)s AND h.revision >= abs(o.left_revision)
        ORDER BY h.organization_id, h.revision
        LIMIT 1
    ) AS h ON h.revision = abs(o.left_revision)
    ORDER BY o.operation_id DESC
    LIMIT %(limit)s
"""

_DONE: LiteralString = """
    SELECT organization_id, operation_id FROM finished_operations(%s::text[], %s::uuid[])
"""

# How far the clock of the machine that accepted an operation may be ahead.
CLOCK_SKEW = timedelta(minutes=1)

# Conditions on finished and on queued operations, by the filter of a list.
FILTERS: dict[str, tuple[LiteralString, LiteralString]] = {
    "": ("", ""),
    "done=true": ("", "AND false"),
    "done=false": ("AND false", ""),
    "error:*": ("AND revision IS NULL", "AND false"),
}


class OperationResults:
    """Reads operations. A finished operation is kept for at least `retention`.

    `max_hold` is the longest time for which an appointment can be held.

    `poll_interval` is in seconds. `queued_elsewhere` means that operations are queued in a
    broker, where they cannot be read. An operation that is not found then counts as not done
    if its id was created within `retention`.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        *,
        retention: timedelta,
        max_hold: timedelta,
        poll_interval: float,
        queued_elsewhere: bool,
    ) -> None:
        self._database = database
        self._retention = retention
        self._max_hold = max_hold
        self._poll_interval = poll_interval
        self._queued_elsewhere = queued_elsewhere
        # Events to set when an operation is done, by organization and operation.
        self._waiting: dict[tuple[str, UUID], set[asyncio.Event]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._backoff = Backoff("watch operations", metrics.unexpected_errors)
        self._ending = False

    async def get(self, organization_id: str, id: UUID) -> OperationState:
        """Return the state of an operation. Raises OperationNotFound, EpochEnded."""
        found = await self._database.fetch(
            organization_id,
            _OPERATIONS.format(only="AND operation_id = %(id)s", done="", queued=""),
            {"organization_id": organization_id, "id": id, "limit": 1},
        )
        if found:
            return self._state(organization_id, found[0])
        age = datetime.now(UTC) - time_of(id) if id.version == 7 else None
        began_at = began(self._database.epoch)
        if (
            age is not None
            and began_at is not None
            and not self._queued_elsewhere
            and (time_of(id) < began_at)
        ):
            raise EpochEnded(
                "the database was restored to an earlier time since the operation was accepted,"
                " and does not have it; if its write is not there, send it again"
            )
        if not self._queued_elsewhere or age is None or not -CLOCK_SKEW < age < self._retention:
            raise OperationNotFound("there is no such operation, or its result is no longer kept")
        return OperationState(
            organization_id=organization_id, id=id, appointment_id="", accepted_at=time_of(id)
        )

    async def list(
        self, organization_id: str, *, filter: str, before: UUID | None, limit: int
    ) -> Sequence[OperationState]:
        """Return up to `limit` operations older than `before`, the latest first."""
        done, queued = FILTERS[filter]
        only: LiteralString = "" if before is None else "AND operation_id < %(before)s"
        found = await self._database.fetch(
            organization_id,
            _OPERATIONS.format(only=only, done=done, queued=queued),
            {"organization_id": organization_id, "before": before, "limit": limit},
        )
        return [self._state(organization_id, row) for row in found]

    async def wait(self, organization_id: str, id: UUID, *, at_most: float) -> OperationState:
        """Return the state of an operation when it is done, or after `at_most` seconds."""
        state = await self.get(organization_id, id)
        if state.result is not None or at_most <= 0 or self._ending:
            return state
        key = (organization_id, id)
        done = asyncio.Event()
        self._waiting.setdefault(key, set()).add(done)
        if self._watching is None:
            # For all who wait, not in the context of the first one.
            self._watching = asyncio.create_task(self._watch(), context=contextvars.Context())
        try:
            async with asyncio.timeout(at_most):
                await done.wait()
        except TimeoutError:
            return state
        finally:
            self._forget(key, done)
        return await self.get(organization_id, id)

    def end_waits(self) -> None:
        """End all waits with the current state, including those that start later."""
        self._ending = True
        for waiting in self._waiting.values():
            for done in waiting:
                done.set()

    async def _watch(self) -> None:
        """Poll for all awaited operations in one query, until none is awaited."""
        try:
            while self._waiting:
                await asyncio.sleep(self._poll_interval)
                if not self._waiting:
                    break
                organizations, ids = zip(*self._waiting, strict=True)
                # After an error the waits continue, each until its own timeout.
                try:
                    found = await self._database.fetch_across(
                        _DONE, (list(organizations), list(ids))
                    )
                    for key in found:
                        for done in self._waiting.get((key[0], key[1]), ()):
                            done.set()
                except ServiceError:
                    continue
                except Exception as error:  # noqa: BLE001  later waits need this task too
                    await asyncio.sleep(self._backoff.failed(error))
                else:
                    self._backoff.succeeded()
        finally:
            self._watching = None

    def _forget(self, key: tuple[str, UUID], done: asyncio.Event) -> None:
        self._waiting[key].discard(done)
        if not self._waiting[key]:
            del self._waiting[key]

    def _state(self, organization_id: str, row: Row) -> OperationState:
        result = None
        if row[4] is not None:
            result = _result(
                organization_id, row[4:], max_hold=self._max_hold, epoch=self._database.epoch
            )
        return OperationState(
            organization_id=organization_id,
            id=row[0],
            accepted_at=row[1],
            appointment_id=row[2],
            finished_at=row[3],
            result=result,
        )


def _result(
    organization_id: str, row: Row, *, max_hold: timedelta, epoch: str
) -> WriteResult | ServiceError:
    outcome, revision, conflicts, alternatives, failure, clock, *appointment = row
    if failure is not None:
        return OperationFailed(
            f"it could not be applied, nothing was written: {failure}",
            organization_revision=revision,
        )
    if appointment[0] is None:
        return refusal(outcome, revision, conflicts, alternatives, max_hold=max_hold)
    return WriteResult(
        outcome=Outcome(outcome),
        appointment=rows.appointment(organization_id, tuple(appointment), clock, epoch=epoch),
        organization_revision=revision,
    )
