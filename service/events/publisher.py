"""Publishes every change of every organization, in the order of its revisions."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic

import structlog

from service.amqp import Broker
from service.domain import HistoryEntry
from service.errors import BrokerUnavailable, ServiceError
from service.events.rabbitmq import EXCHANGE, message
from service.events.store import EventStore
from service.metrics import Metrics

# Changes that are read and published together; the confirmations come meanwhile.
GROUP = 200

# Organizations that share a group, at most.
ORGANIZATIONS = 50

# Groups of the same organizations before others get their turn.
GROUPS_IN_A_ROW = 20

# The share of the time that may go into looking for changes.
LOOKING_SHARE = 0.1

# Seconds before another attempt after a failure.
RETRY_DELAY = 0.5

log = structlog.get_logger()


class EventPublisher:
    """The duty to publish, of which one worker at a time is in charge.

    At least once: what was published right before a worker, the broker or the database
    failed is published again. Of each organization the first appearances of the changes
    are in the order of their revisions, without gaps, unless the broker refuses one of
    them alone: then those after it may come before it, and come once more after it.

    A worker in charge that makes no headway does not extend its lease, so that another
    may try. One that was overtaken moves no cursor, but may repeat messages.
    """

    def __init__(
        self, store: EventStore, broker: Broker, metrics: Metrics, *, interval: float, lease: float
    ) -> None:
        self._store = store
        self._broker = broker
        self._metrics = metrics
        self._interval = interval
        self._lease = lease
        self._fence: int | None = None
        self._renew_at = 0.0
        self._look_at = 0.0
        self._behind = 0

    async def run(self) -> None:
        """Publish until cancelled; hands the charge over to another worker then."""
        failing = False
        try:
            while True:
                try:
                    pause = await self._turn()
                except ServiceError as error:
                    if not failing:
                        log.warning(
                            "events are held back",
                            error=error.message,
                            cause=repr(error.__cause__) if error.__cause__ else None,
                        )
                    failing = True
                    pause = RETRY_DELAY
                else:
                    if failing:
                        log.info("events are published again")
                    failing = False
                await asyncio.sleep(pause)
        finally:
            fence, self._fence = self._fence, None
            if fence is not None:
                with suppress(ServiceError):
                    await self._store.renew(fence, 0)

    async def _turn(self) -> float:
        """Publish what there is, if in charge; return how long to wait (seconds)."""
        if self._fence is None:
            self._fence = await self._store.take(self._lease)
            if self._fence is None:
                return min(1.0, self._lease / 4)
            log.info("in charge of events", fence=self._fence)
            self._renew_at = monotonic() + self._lease / 3
        due = monotonic() >= self._look_at
        if not await (self._sweep(self._fence) if due else self._hold(self._fence)):
            return self._overtaken()
        return max(0.0, min(self._look_at, self._renew_at) - monotonic())

    async def _sweep(self, fence: int) -> bool:
        """Publish what all organizations have; False if another worker is in charge."""
        began = monotonic()
        looking = 0.0
        after, behind, found = "", 0, False
        while True:
            look = monotonic()
            part = await self._store.look(after)
            looking += monotonic() - look
            behind += part.behind
            # The beginning alone is no news if there was more before.
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
            if not await self._hold(fence):
                return False
            after = part.end
        pause = looking / LOOKING_SHARE - (monotonic() - began)
        self._look_at = monotonic() + max(0.0 if found else self._interval, pause)
        return True

    async def _hold(self, fence: int) -> bool:
        """Extend the lease when it is time; False if another worker is in charge."""
        if monotonic() < self._renew_at:
            return True
        self._renew_at = monotonic() + self._lease / 3
        return await self._store.renew(fence, self._lease)

    def _overtaken(self) -> float:
        log.info("no longer in charge of events", fence=self._fence)
        self._fence = None
        self._behind = 0
        self._metrics.events_behind.set(0)
        return self._interval

    async def _publish(self, cursors: Mapping[str, int], fence: int) -> bool:
        """Publish what some organizations have; False if another worker is in charge.

        Raises BrokerUnavailable after moving the cursors over what was confirmed.
        """
        wanted = dict(cursors)
        for _ in range(GROUPS_IN_A_ROW):
            each = GROUP // len(wanted)
            entries = await self._store.entries(wanted, each=each)
            if not entries:
                return True
            failures = await self._broker.publish_in_order(
                EXCHANGE, [message(entry) for entry in entries]
            )
            confirmed = _confirmed(entries, failures)
            if confirmed:
                self._renew_at = monotonic() + self._lease / 3
                if not await self._store.advance(confirmed, fence, self._lease):
                    return False
                self._metrics.events_published.inc(failures.count(None))
            for failure in failures:
                if failure is not None:
                    raise failure
            # Those that had as much as they were given room for may have more.
            wanted = {
                organization_id: revision
                for organization_id, revision in confirmed.items()
                if revision - wanted[organization_id] == each
            }
            if not wanted:
                return True
        return True


def _confirmed(
    entries: Sequence[HistoryEntry], failures: Sequence[BrokerUnavailable | None]
) -> dict[str, int]:
    """Return how far each organization is confirmed without a gap."""
    confirmed: dict[str, int] = {}
    stopped: set[str] = set()
    for entry, failure in zip(entries, failures, strict=True):
        organization_id = entry.appointment.organization_id
        if failure is not None:
            stopped.add(organization_id)
        elif organization_id not in stopped:
            confirmed[organization_id] = entry.revision
    return confirmed
