"""Publishes every change of every organization, in the order of its revisions."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from runtime.tracing import current_tracer
from service.amqp import Broker
from service.domain import HistoryEntry
from service.errors import BrokerUnavailable, ServiceError
from service.events.rabbitmq import EXCHANGE, message
from service.events.store import EventStore
from service.metrics import Metrics
from service.postgres.notifications import MAX_SLEEP, Wakeup

if TYPE_CHECKING:
    from runtime.spans import Span

# Changes that are read and published together, before any is confirmed.
GROUP = 200

# Maximum number of organizations in a group.
ORGANIZATIONS = 50

# Maximum number of consecutive groups of the same organizations.
MAX_CONSECUTIVE_GROUPS = 20

# Maximum share of the time that is spent scanning for changes.
SCAN_SHARE = 0.1

# Seconds before the next attempt after a failure.
RETRY_DELAY = 0.5

log = structlog.get_logger()


class EventPublisher:
    """Publishes changes while this worker holds the lease, which one worker has at a time.

    Every change is published at least once. Changes whose confirmation was lost, because a
    worker, the broker or the database failed, are published again. The changes of an
    organization first appear in the order of their revisions, without gaps. The exception is
    a change that the broker alone refuses: later changes may be published before it, and are
    published again after it.

    A worker that makes no progress does not renew its lease, so that another worker takes
    over. A worker that has lost its lease moves no cursor, but may repeat messages.
    """

    def __init__(
        self,
        store: EventStore,
        broker: Broker,
        metrics: Metrics,
        wakeup: Wakeup,
        *,
        interval: float,
        lease: float,
    ) -> None:
        self._store = store
        self._broker = broker
        self._metrics = metrics
        self._wakeup = wakeup
        self._interval = interval
        self._lease = lease
        self._fence: int | None = None
        self._renew_at = 0.0
        self._scan_at = 0.0
        # Whether the last scan found nothing.
        self._idle = False
        self._behind = 0

    async def run(self) -> None:
        """Publish until cancelled, then release the lease."""
        failing = False
        try:
            while True:
                try:
                    pause = await self._run_once()
                except ServiceError as error:
                    if not failing:
                        log.warning(
                            "event publishing failed",
                            error=error.message,
                            cause=repr(error.__cause__) if error.__cause__ else None,
                        )
                    failing = True
                    pause = RETRY_DELAY
                else:
                    if failing:
                        log.info("event publishing resumed")
                    failing = False
                await asyncio.sleep(pause)
                if self._idle and monotonic() >= self._scan_at:
                    until_renewal = max(self._renew_at - monotonic(), 0.0)
                    await self._wakeup.wait(min(until_renewal, MAX_SLEEP))
        finally:
            fence, self._fence = self._fence, None
            if fence is not None:
                with suppress(ServiceError):
                    await self._store.release(fence)

    async def _run_once(self) -> float:
        """Acquire or renew the lease, publish if due; return how long to wait (seconds)."""
        if self._fence is None:
            self._fence = await self._store.acquire(self._lease)
            if self._fence is None:
                return min(1.0, self._lease / 4)
            log.info("event publisher lease acquired", fence=self._fence)
            self._renew_at = monotonic() + self._lease / 3
        due = monotonic() >= self._scan_at
        if not await (self._publish_all(self._fence) if due else self._renew(self._fence)):
            return self._lease_lost()
        return max(0.0, min(self._scan_at, self._renew_at) - monotonic())

    async def _publish_all(self, fence: int) -> bool:
        """Publish the pending changes of all organizations; False if the lease was lost."""
        self._idle = False
        began = monotonic()
        scanning = 0.0
        after, behind, found = "", 0, False
        while True:
            scan_began = monotonic()
            part = await self._store.scan(after)
            scanning += monotonic() - scan_began
            behind += part.behind
            # A partial sum is reported only if it exceeds the last complete one.
            if part.last or behind > self._behind:
                self._behind = behind
                self._metrics.events_behind.set(behind)
            organizations = list(part.cursors.items())
            for start in range(0, len(organizations), ORGANIZATIONS):
                found = True
                if not await self._publish(
                    dict(organizations[start : start + ORGANIZATIONS]), fence
                ):
                    return False
            if part.last:
                break
            if not await self._renew(fence):
                return False
            after = part.end
        self._idle = not found
        pause = scanning / SCAN_SHARE - (monotonic() - began)
        self._scan_at = monotonic() + max(0.0 if found else self._interval, pause)
        return True

    async def _renew(self, fence: int) -> bool:
        """Renew the lease if that is due; False if the lease was lost."""
        if monotonic() < self._renew_at:
            return True
        self._renew_at = monotonic() + self._lease / 3
        return await self._store.renew(fence, self._lease)

    def _lease_lost(self) -> float:
        log.info("event publisher lease lost", fence=self._fence)
        self._fence = None
        self._idle = False
        self._behind = 0
        self._metrics.events_behind.set(0)
        return self._interval

    async def _publish(self, cursors: Mapping[str, int], fence: int) -> bool:
        """Publish the pending changes of some organizations; False if the lease was lost.

        Raises BrokerUnavailable, after moving the cursors past the confirmed changes.
        """
        wanted = dict(cursors)
        for _ in range(MAX_CONSECUTIVE_GROUPS):
            each = GROUP // len(wanted)
            entries = await self._store.entries(wanted, each=each)
            if not entries:
                return True
            spans = await self._begin(wanted, entries)
            failures = await self._broker.publish_in_order(
                EXCHANGE,
                [
                    message(entry, span.traceparent if span else None)
                    for entry, span in zip(entries, spans, strict=True)
                ],
            )
            _end(spans, entries, failures)
            confirmed = _confirmed(entries, failures)
            if confirmed:
                self._renew_at = monotonic() + self._lease / 3
                if not await self._store.advance(confirmed, fence, self._lease):
                    return False
                self._metrics.events_published.inc(failures.count(None))
            for failure in failures:
                if failure is not None:
                    raise failure
            # An organization that filled its share of the group may have more changes.
            wanted = {
                organization_id: revision
                for organization_id, revision in confirmed.items()
                if revision - wanted[organization_id] == each
            }
            if not wanted:
                return True
        return True

    async def _begin(
        self, cursors: Mapping[str, int], entries: Sequence[HistoryEntry]
    ) -> "list[Span | None]":
        """Begin a span for each change that is part of a trace."""
        tracer = current_tracer.get()
        if tracer is None:
            return [None] * len(entries)
        # The last entry of each organization is the last one here.
        reached = {entry.appointment.organization_id: entry.revision for entry in entries}
        traces = await self._store.trace_contexts(cursors, reached)
        spans: list[Span | None] = []
        for entry in entries:
            trace = traces.get((entry.appointment.organization_id, entry.revision))
            span = trace and tracer.begin(f"publish {EXCHANGE}", trace, kind="producer")
            spans.append(span or None)
        return spans


def _end(
    spans: "Sequence[Span | None]",
    entries: Sequence[HistoryEntry],
    failures: Sequence[BrokerUnavailable | None],
) -> None:
    for span, entry, failure in zip(spans, entries, failures, strict=True):
        if span is not None:
            span.end(
                error=failure.reason if failure else None,
                messaging="rabbitmq",
                organization=entry.appointment.organization_id,
                revision=entry.revision,
            )


def _confirmed(
    entries: Sequence[HistoryEntry], failures: Sequence[BrokerUnavailable | None]
) -> dict[str, int]:
    """Return for each organization the last revision confirmed without a gap."""
    confirmed: dict[str, int] = {}
    stopped: set[str] = set()
    for entry, failure in zip(entries, failures, strict=True):
        organization_id = entry.appointment.organization_id
        if failure is not None:
            stopped.add(organization_id)
        elif organization_id not in stopped:
            confirmed[organization_id] = entry.revision
    return confirmed
