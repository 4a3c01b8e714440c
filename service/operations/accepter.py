"""Accepting: operations that arrive at once are appended to the queue together."""

from collections.abc import Sequence
from typing import Protocol

from service.batcher import Batcher
from service.errors import Overloaded
from service.metrics import Metrics
from service.operations.operation import Operation

MAX_APPENDED = 512


class OperationQueue(Protocol):
    """Where operations are until a worker applies them."""

    async def append(self, operations: Sequence[Operation]) -> Sequence[Exception | None]:
        """Store operations durably, in order.

        Returns, for each, None or why it is not stored, or not known to be. Raises what is
        so of all of them.
        """


class Accepter:
    """Appends to a queue; at most `max_waiting` operations wait for that.

    It takes no organization's lock.
    """

    def __init__(self, queue: OperationQueue, metrics: Metrics, *, max_waiting: int) -> None:
        self._queue = queue
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._batcher = Batcher(self._append, most=MAX_APPENDED)

    async def accept(self, operation: Operation) -> None:
        """Return once the operation is stored durably.

        Raises Overloaded, with nothing accepted, when too many wait already, and what the
        queue raises.
        """
        waiting = self._batcher.waiting
        if waiting >= self._max_waiting:
            raise Overloaded(
                f"{waiting} operations wait to be accepted; nothing was accepted, try again later"
            )
        await self._batcher.submit(operation)

    async def drain(self) -> None:
        """Wait until nothing is being accepted."""
        await self._batcher.drain()

    async def _append(self, operations: Sequence[Operation]) -> Sequence[Exception | None]:
        self._metrics.accepted_together.observe(len(operations))
        return await self._queue.append(operations)
