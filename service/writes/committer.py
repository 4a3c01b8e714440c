"""Group commit: concurrent writes of one organization go to the database as one batch.

While a batch of an organization is in flight, its further writes are queued. When the batch
returns, all queued writes become the next batch. There is no timer: a single write is sent
at once, and under load batches grow by themselves.

Small batches of several organizations share a database call. While the shared call is in
flight, further organizations are queued; when it returns, they share the next one. An
organization gets a call of its own if it has so many writes that sharing gains nothing, or
if another session holds its lock, so that no other organization waits for that lock. An atomic
batch of writes is a batch and a call of its own.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.tracing import current_span, shared_span
from service.domain import AtomicBatch, Write, WriteResult, traced
from service.errors import Overloaded
from service.metrics import Metrics
from service.writes.store import WriteStore

if TYPE_CHECKING:
    from runtime.spans import Span

# Maximum number of writes in one request. The queue always has room for one such request.
MAX_BATCH_REQUEST = 1000

# With this many queued writes, an organization gets a call of its own if a connection is idle.
OWN_CALL_WRITES = 16


@dataclass(slots=True, eq=False)
class _PendingWrite:
    """A write or an atomic batch. The result is a list for an atomic batch."""

    write: Write | AtomicBatch
    result: asyncio.Future[Any]
    span: "Span | None" = None

    @property
    def size(self) -> int:
        """The number of writes."""
        return len(self.write.upserts) if isinstance(self.write, AtomicBatch) else 1


@dataclass(slots=True, eq=False)
class _Queue:
    """The writes of one organization that are not in flight yet."""

    organization_id: str
    # Never shares a call: sharing is off, or the shared call found the organization locked.
    alone: bool
    waiting: deque[_PendingWrite] = field(default_factory=deque)
    # The number of waiting writes.
    size: int = 0
    in_flight: bool = False


_Batch = tuple[_Queue, list[_PendingWrite]]


class Committer:
    """Sends writes to the store in batches, one batch per organization at a time.

    `connections` limits the calls in flight, `max_organizations` the batches that share a
    call (1: sharing is off), `max_batch` the writes in a call, `max_queued` the queued
    writes. One organization may queue at most half of `max_queued`.
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
        # One organization alone cannot fill the queue.
        self._max_queued_per_organization = max(max_queued // 2, MAX_BATCH_REQUEST)
        # One connection is reserved for shared calls, so that locked organizations cannot
        # occupy every connection.
        self._sharing = max_organizations > 1 and connections > 1
        self._shared_is_idle = self._sharing
        self._idle_connections = connections - 1 if self._sharing else connections
        self._queued = 0
        self._queues: dict[str, _Queue] = {}
        # Queues with pending writes and no batch in flight, by organization, oldest first:
        # those that share calls, those that are large enough for a call of their own, and
        # those that must not share.
        self._small: dict[str, _Queue] = {}
        self._large: dict[str, _Queue] = {}
        self._alone: dict[str, _Queue] = {}
        self._dispatching = False
        self._last: dict[str, _Queue] = self._large
        self._calls: set[asyncio.Task[None]] = set()
        metrics.queued_writes.set_function(lambda: self._queued)

    async def submit(self, organization_id: str, write: Write) -> WriteResult:
        """Apply one write and return its result. Raises the error if it was refused."""
        [pending] = self._enqueue(organization_id, [write])
        result: WriteResult | Exception = await pending.result
        if isinstance(result, Exception):
            raise result
        return result

    async def submit_all(
        self, organization_id: str, writes: Sequence[Write]
    ) -> list[WriteResult | Exception]:
        """Apply writes in order, each seeing the previous ones; return a result for each.

        Cancelling removes the writes that are still queued. Writes in flight are completed,
        so that the database call never ends in an unknown state because of a caller.

        Raises Overloaded, with nothing queued, if too many writes are queued already.
        """
        pending = self._enqueue(organization_id, writes)
        # Cancelling gather() cancels the futures, which marks the writes as not wanted.
        results: list[WriteResult | Exception] = await asyncio.gather(
            *(item.result for item in pending)
        )
        return results

    async def submit_batch(self, organization_id: str, batch: AtomicBatch) -> list[WriteResult]:
        """Apply a batch atomically and return the result of each write.

        Raises BatchRefused, and Overloaded as `submit_all` does.
        """
        [pending] = self._enqueue(organization_id, [batch])
        result: list[WriteResult] | Exception = await pending.result
        if isinstance(result, Exception):
            raise result
        return result

    async def drain(self) -> None:
        """Wait until nothing is queued or in flight."""
        while self._queues:
            await (asyncio.wait(self._calls) if self._calls else asyncio.sleep(0))

    def _enqueue(
        self, organization_id: str, writes: Sequence[Write | AtomicBatch]
    ) -> list[_PendingWrite]:
        queue = self._queues.get(organization_id)
        if queue is None:
            queue = _Queue(organization_id, alone=not self._sharing)
        loop = asyncio.get_running_loop()
        span = current_span.get()
        if span is not None:
            writes = [traced(write, span.traceparent) for write in writes]
        waiting = [_PendingWrite(write, loop.create_future(), span) for write in writes]
        size = sum(item.size for item in waiting)
        if (
            self._queued + size > self._max_queued
            or queue.size + size > self._max_queued_per_organization
        ):
            raise Overloaded(
                f"{self._queued} writes wait already, {queue.size} of them of this"
                " organization; nothing was written, try again later"
            )
        self._queues[organization_id] = queue
        queue.waiting.extend(waiting)
        queue.size += size
        self._queued += size
        if not queue.in_flight:
            self._schedule(queue)
            if not self._dispatching:
                # Runs after all writes that have arrived by now are queued.
                self._dispatching = True
                loop.call_soon(self._dispatch)
        return waiting

    def _schedule(self, queue: _Queue) -> None:
        """Add an organization to those whose next batch may be sent."""
        if queue.alone or isinstance(queue.waiting[0].write, AtomicBatch):
            self._alone[queue.organization_id] = queue
        elif len(queue.waiting) < OWN_CALL_WRITES:
            self._small[queue.organization_id] = queue
        else:
            self._small.pop(queue.organization_id, None)
            self._large[queue.organization_id] = queue

    def _dispatch(self) -> None:
        """Start calls while connections are idle."""
        self._dispatching = False
        while self._idle_connections and (self._alone or self._large):
            # Alternate, so that neither kind starves the other.
            turn = self._alone if self._last is self._large else self._large
            self._last = queues = turn or self._last
            queue = queues.pop(next(iter(queues)))
            batch = self._take(queue, self._max_batch)
            if batch:
                self._idle_connections -= 1
                self._start(self._apply_alone(queue, batch))
        if self._shared_is_idle and (batches := self._take_shared()):
            self._shared_is_idle = False
            self._start(self._apply_shared(batches))

    def _take_shared(self) -> list[_Batch]:
        """Take the batches of the next shared call."""
        batches: list[_Batch] = []
        room = self._max_batch
        for queues in (self._small, self._large):
            while queues and room and len(batches) < self._max_organizations:
                queue = queues.pop(next(iter(queues)))
                batch = self._take(queue, room, shared=True)
                if batch:
                    batches.append((queue, batch))
                    room -= len(batch)
        return batches

    def _take(self, queue: _Queue, most: int, *, shared: bool = False) -> list[_PendingWrite]:
        """Take the next batch. If all callers have gone, return none and drop the queue.

        For a shared call, return none if an atomic batch is next, which gets a call of its own.
        """
        batch: list[_PendingWrite] = []
        while queue.waiting and len(batch) < most:
            item = queue.waiting[0]
            alone = isinstance(item.write, AtomicBatch)
            if alone and (batch or shared) and not item.result.done():
                break
            queue.waiting.popleft()
            queue.size -= item.size
            self._queued -= item.size
            if not item.result.done():
                batch.append(item)
                if alone:
                    break
        if batch:
            queue.in_flight = True
        elif queue.waiting:
            self._schedule(queue)
            asyncio.get_running_loop().call_soon(self._dispatch)
        else:
            del self._queues[queue.organization_id]
        return batch

    def _start(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _apply_alone(self, queue: _Queue, batch: list[_PendingWrite]) -> None:
        self._metrics.batch_size.observe(sum(item.size for item in batch))
        results: Sequence[Any]
        writes = [item.write for item in batch]
        try:
            with shared_span("apply writes", [item.span for item in batch], writes=len(batch)):
                if isinstance(writes[0], AtomicBatch):
                    results = [await self._store.apply_atomically(queue.organization_id, writes[0])]
                else:
                    results = await self._store.apply(queue.organization_id, _single(writes))
            _check_length(batch, results)
        except Exception as error:  # noqa: BLE001  # raised to every caller
            results = [error] * len(batch)
        self._idle_connections += 1
        self._complete(queue, batch, results)
        self._dispatch()

    async def _apply_shared(self, batches: list[_Batch]) -> None:
        results: Sequence[Sequence[WriteResult | Exception] | None]
        spans = [item.span for _, batch in batches for item in batch]
        try:
            with shared_span("apply writes", spans, writes=len(spans), organizations=len(batches)):
                results = await self._store.apply_batches(
                    [
                        (queue.organization_id, _single([item.write for item in batch]))
                        for queue, batch in batches
                    ]
                )
            _check_length(batches, results)
            for (_, batch), each in zip(batches, results, strict=True):
                if each is not None:
                    _check_length(batch, each)
        except Exception as error:  # noqa: BLE001  # raised to every caller
            results = [[error] * len(batch) for _, batch in batches]
        self._shared_is_idle = True
        applied = 0
        for (queue, batch), result in zip(batches, results, strict=True):
            applied += len(batch) if result is not None else 0
            self._complete(queue, batch, result)
        if applied:
            self._metrics.batch_size.observe(applied)
        self._dispatch()

    def _complete(
        self,
        queue: _Queue,
        batch: list[_PendingWrite],
        results: Sequence[WriteResult | Exception] | None,
    ) -> None:
        """Set the callers' results. Without results, requeue the batch for a call of its own."""
        queue.in_flight = False
        if results is None:
            queue.alone = True
            queue.waiting.extendleft(reversed(batch))
            queue.size += len(batch)
            self._queued += len(batch)
        else:
            for item, result in zip(batch, results, strict=True):
                if not item.result.done():
                    item.result.set_result(result)
        if queue.waiting:
            self._schedule(queue)
        else:
            del self._queues[queue.organization_id]


def _single(writes: Sequence[Write | AtomicBatch]) -> list[Write]:
    return [write for write in writes if not isinstance(write, AtomicBatch)]


def _check_length(writes: Sequence[object], results: Sequence[object]) -> None:
    """Raise ValueError if results are missing, before any caller has its result."""
    if len(writes) != len(results):
        raise ValueError(f"{len(results)} results for {len(writes)}")
