"""Group commit: what waits for one organization goes to the database as one batch.

While a batch of an organization is in flight its further writes queue; when it
returns, all that queued go as the next one. There is no timer: alone, a write goes at
once; under load, batches grow by themselves.

Small batches of many organizations share a call: while one such call is in flight,
organizations queue; when it returns, all that queued share the next. A call of its own
is made for an organization with so many writes that sharing gains nothing, and for one
whose lock another session holds: nobody else waits for that lock.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.domain import Write, WriteResult
from service.errors import Overloaded
from service.metrics import Metrics
from service.writes.store import WriteStore

# The most that one call may bring; it must find room.
MAX_BATCH_REQUEST = 1000

# From so many waiting writes on, an organization gets a call of its own if it can.
OWN_CALL_WRITES = 16


@dataclass(slots=True, eq=False)
class _Waiting:
    write: Write
    result: asyncio.Future[WriteResult | Exception]


@dataclass(slots=True, eq=False)
class _Queue:
    """One organization's writes that are not in flight yet."""

    organization_id: str
    # Shares no call: none does, or one left it out. Kept until the queue is empty.
    alone: bool
    waiting: deque[_Waiting] = field(default_factory=deque)
    in_flight: bool = False


_Batch = tuple[_Queue, list[_Waiting]]


class Committer:
    """Hands writes to the store in batches, one batch of an organization at a time.

    `connections` bounds the calls in flight, `max_organizations` the batches that share
    a call (1: none do), `max_batch` the writes of one call, `max_queued` the writes that
    wait in all; one organization may have half of them.
    """

    def __init__(
        self,
        store: WriteStore,
        metrics: Metrics,
        *,
        connections: int,
        max_organizations: int,
        max_batch: int,
        max_queued: int,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._max_organizations = max_organizations
        self._max_batch = max_batch
        self._max_queued = max_queued
        # So that one organization cannot shut the others out.
        self._max_queued_by_one = max(max_queued // 2, MAX_BATCH_REQUEST)
        # One connection is for shared calls alone: locks held elsewhere cannot use up all.
        self._sharing = max_organizations > 1 and connections > 1
        self._shared_is_free = self._sharing
        self._free = connections - 1 if self._sharing else connections
        self._queued = 0
        self._queues: dict[str, _Queue] = {}
        # Queues with waiting writes and none in flight, by organization, oldest first:
        # those that share calls, those that are large enough for one of their own, and
        # those that may not share.
        self._small: dict[str, _Queue] = {}
        self._large: dict[str, _Queue] = {}
        self._alone: dict[str, _Queue] = {}
        self._dispatching = False
        self._last: dict[str, _Queue] = self._large
        self._flights: set[asyncio.Task[None]] = set()
        metrics.queued_writes.set_function(lambda: self._queued)

    async def submit(self, organization_id: str, write: Write) -> WriteResult:
        """Apply one write; return its result or raise why it was refused."""
        [waiting] = self._enqueue(organization_id, [write])
        result = await waiting.result
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
        waiting = self._enqueue(organization_id, writes)
        # Cancelling the gathering cancels what it gathers: those results are not wanted.
        return await asyncio.gather(*(item.result for item in waiting))

    async def drain(self) -> None:
        """Wait until nothing is queued or in flight."""
        while self._queues:
            await (asyncio.wait(self._flights) if self._flights else asyncio.sleep(0))

    def _enqueue(self, organization_id: str, writes: Sequence[Write]) -> list[_Waiting]:
        queue = self._queues.get(organization_id)
        if queue is None:
            queue = _Queue(organization_id, alone=not self._sharing)
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
        queue.waiting.extend(waiting)
        self._queued += len(waiting)
        if not queue.in_flight:
            self._line_up(queue)
            if not self._dispatching:
                # Once all that has arrived by now is queued.
                self._dispatching = True
                loop.call_soon(self._dispatch)
        return waiting

    def _line_up(self, queue: _Queue) -> None:
        """Put an organization among those whose batch may go."""
        if queue.alone:
            self._alone[queue.organization_id] = queue
        elif len(queue.waiting) < OWN_CALL_WRITES:
            self._small[queue.organization_id] = queue
        else:
            self._small.pop(queue.organization_id, None)
            self._large[queue.organization_id] = queue

    def _dispatch(self) -> None:
        """Start every call that there is a connection for."""
        self._dispatching = False
        while self._free and (self._alone or self._large):
            # In turn: neither kind is to keep the other waiting.
            turn = self._alone if self._last is self._large else self._large
            self._last = queues = turn or self._last
            queue = queues.pop(next(iter(queues)))
            batch = self._take(queue, self._max_batch)
            if batch:
                self._free -= 1
                self._start(self._fly_alone(queue, batch))
        if self._shared_is_free and (batches := self._gather()):
            self._shared_is_free = False
            self._start(self._fly_shared(batches))

    def _gather(self) -> list[_Batch]:
        """Take what shares the next call."""
        batches: list[_Batch] = []
        room = self._max_batch
        for queues in (self._small, self._large):
            while queues and room and len(batches) < self._max_organizations:
                queue = queues.pop(next(iter(queues)))
                batch = self._take(queue, room)
                if batch:
                    batches.append((queue, batch))
                    room -= len(batch)
        return batches

    def _take(self, queue: _Queue, most: int) -> list[_Waiting]:
        """Take the next batch; empty, and the queue forgotten, if every caller went away."""
        batch: list[_Waiting] = []
        while queue.waiting and len(batch) < most:
            item = queue.waiting.popleft()
            self._queued -= 1
            if not item.result.done():
                batch.append(item)
        if batch:
            queue.in_flight = True
        else:
            del self._queues[queue.organization_id]
        return batch

    def _start(self, flight: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(flight)
        self._flights.add(task)
        task.add_done_callback(self._flights.discard)

    async def _fly_alone(self, queue: _Queue, batch: list[_Waiting]) -> None:
        self._metrics.batch_size.observe(len(batch))
        results: Sequence[WriteResult | Exception]
        try:
            writes = [item.write for item in batch]
            results = await self._store.apply(queue.organization_id, writes)
            _check_length(batch, results)
        except Exception as error:  # noqa: BLE001  # each caller is to learn of it
            results = [error] * len(batch)
        self._free += 1
        self._land(queue, batch, results)
        self._dispatch()

    async def _fly_shared(self, batches: list[_Batch]) -> None:
        results: Sequence[Sequence[WriteResult | Exception] | None]
        try:
            results = await self._store.apply_batches(
                [
                    (queue.organization_id, [item.write for item in batch])
                    for queue, batch in batches
                ]
            )
            _check_length(batches, results)
            for (_, batch), each in zip(batches, results, strict=True):
                if each is not None:
                    _check_length(batch, each)
        except Exception as error:  # noqa: BLE001  # each caller is to learn of it
            results = [[error] * len(batch) for _, batch in batches]
        self._shared_is_free = True
        carried = 0
        for (queue, batch), result in zip(batches, results, strict=True):
            carried += len(batch) if result is not None else 0
            self._land(queue, batch, result)
        if carried:
            self._metrics.batch_size.observe(carried)
        self._dispatch()

    def _land(
        self,
        queue: _Queue,
        batch: list[_Waiting],
        results: Sequence[WriteResult | Exception] | None,
    ) -> None:
        """Give results to the callers, or put the batch back to go alone if there are none."""
        queue.in_flight = False
        if results is None:
            queue.alone = True
            queue.waiting.extendleft(reversed(batch))
            self._queued += len(batch)
        else:
            for item, result in zip(batch, results, strict=True):
                if not item.result.done():
                    item.result.set_result(result)
        if queue.waiting:
            self._line_up(queue)
        else:
            del self._queues[queue.organization_id]


def _check_length(asked: Sequence[object], answered: Sequence[object]) -> None:
    """Notice missing results before any caller has one: all of a flight learn of it then."""
    if len(asked) != len(answered):
        raise ValueError(f"{len(answered)} results for {len(asked)}")
