"""Group commit: what waits for one organization goes to the database as one batch.

While a batch of an organization is in flight its further writes queue; when it
returns, all that queued go as the next one. There is no timer: alone, a write goes at
once; under load, batches grow by themselves.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.domain import Write, WriteResult
from service.errors import Overloaded
from service.metrics import Metrics
from service.writes import WriteStore

# The most that one call may bring; it must find room.
MAX_BATCH_REQUEST = 1000


@dataclass(slots=True, eq=False)
class _Waiting:
    write: Write
    result: asyncio.Future[WriteResult | Exception]


@dataclass(slots=True, eq=False)
class _Queue:
    """One organization's writes that are not in flight yet."""

    waiting: deque[_Waiting] = field(default_factory=deque)
    in_flight: bool = False


class Committer:
    """Hands writes to the store in batches, one batch of an organization at a time.

    `connections` bounds the batches in flight, `max_batch` the writes of one,
    `max_queued` the writes that wait in all; one organization may have half of them.
    """

    def __init__(
        self,
        store: WriteStore,
        metrics: Metrics,
        *,
        connections: int,
        max_batch: int,
        max_queued: int,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._free = connections
        self._max_batch = max_batch
        self._max_queued = max_queued
        # So that one organization cannot shut the others out.
        self._max_queued_by_one = max(max_queued // 2, MAX_BATCH_REQUEST)
        self._queued = 0
        self._queues: dict[str, _Queue] = {}
        # Organizations with waiting writes and no batch in flight, oldest first.
        self._ready: deque[str] = deque()
        self._flights: set[asyncio.Task[None]] = set()
        metrics.queued_writes.set_function(lambda: self._queued)

    async def submit(self, organization_id: str, write: Write) -> WriteResult:
        """Apply one write; return its result or raise why it was refused."""
        [result] = await self.submit_all(organization_id, [write])
        if isinstance(result, Exception):
            raise result
        return result

    async def submit_all(
        self, organization_id: str, writes: Sequence[Write]
    ) -> list[WriteResult | Exception]:
        """Apply writes in order, each seeing those before it; return a result for each.

        A caller that is cancelled takes those writes back that are still queued; what
        is in flight is finished all the same, so that it is never half known.

        Raises Overloaded, with nothing queued, when too many writes wait already.
        """
        queue = self._queues.get(organization_id) or _Queue()
        if (
            self._queued + len(writes) > self._max_queued
            or len(queue.waiting) + len(writes) > self._max_queued_by_one
        ):
            raise Overloaded(
                f"{self._queued} writes wait already, {len(queue.waiting)} of them of this"
                " organization; nothing was written, try again later"
            )
        self._queues[organization_id] = queue
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(write, loop.create_future()) for write in writes]
        if not queue.in_flight and not queue.waiting:
            self._ready.append(organization_id)
        queue.waiting.extend(waiting)
        self._queued += len(waiting)
        self._dispatch()
        # Cancelling the gathering cancels what it gathers: those results are not wanted.
        return await asyncio.gather(*(item.result for item in waiting))

    async def drain(self) -> None:
        """Wait until nothing is queued or in flight."""
        while self._flights:
            await asyncio.wait(self._flights)

    def _dispatch(self) -> None:
        while self._free and self._ready:
            organization_id = self._ready.popleft()
            queue = self._queues[organization_id]
            batch = self._take(queue)
            if not batch:  # every caller went away
                self._settle(organization_id, queue)
                continue
            self._free -= 1
            queue.in_flight = True
            flight = asyncio.create_task(self._fly(organization_id, queue, batch))
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)

    def _take(self, queue: _Queue) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while queue.waiting and len(batch) < self._max_batch:
            item = queue.waiting.popleft()
            self._queued -= 1
            if not item.result.done():
                batch.append(item)
        return batch

    async def _fly(self, organization_id: str, queue: _Queue, batch: list[_Waiting]) -> None:
        self._metrics.batch_size.observe(len(batch))
        results: Sequence[WriteResult | Exception]
        try:
            results = await self._store.apply(organization_id, [item.write for item in batch])
        except Exception as error:  # noqa: BLE001  # each caller is to learn of it
            results = [error] * len(batch)
        for item, result in zip(batch, results, strict=True):
            if not item.result.done():
                item.result.set_result(result)
        self._free += 1
        queue.in_flight = False
        self._settle(organization_id, queue)
        self._dispatch()

    def _settle(self, organization_id: str, queue: _Queue) -> None:
        """Line the organization up again if it has more to write, else forget it."""
        if queue.waiting:
            self._ready.append(organization_id)
        else:
            del self._queues[organization_id]
