"""Accepts operations. Those that arrive concurrently are appended to the queue together."""

from collections.abc import Sequence
from typing import Protocol

from runtime.tracing import shared_span
from service.batcher import Batcher
from service.metrics import Metrics
from service.operations.operation import Operation

MAX_APPENDED = 512


class OperationQueue(Protocol):
    """A durable queue of operations, which workers apply."""

    async def append(self, operations: Sequence[Operation]) -> Sequence[Exception | None]:
        """Store operations durably, in order.

        Returns None for each stored operation, and the error of each that is not stored, or
        not known to be. Raises an error that concerns all of them.
        """


class Accepter:
    """Appends operations to a queue, without taking an organization's lock.

    At most `max_waiting` operations may wait to be appended.
    """

    def __init__(self, queue: OperationQueue, metrics: Metrics, *, max_waiting: int) -> None:
        self._queue = queue
        self._metrics = metrics
        self._batcher = Batcher(
            self._append,
            most=MAX_APPENDED,
            gather=True,
            max_waiting=max_waiting,
            refusal="operations wait to be accepted; nothing was accepted, try again later",
        )

    async def accept(self, operation: Operation) -> None:
        """Wait until the operation is stored durably.

        Raises Overloaded if too many operations wait, with nothing accepted, and the errors of
        the queue.
        """
        await self._batcher.submit(operation)

    async def drain(self) -> None:
        """Wait until no operation waits to be appended."""
        await self._batcher.drain()

    async def _append(self, operations: Sequence[Operation]) -> Sequence[Exception | None]:
        self._metrics.accepted_together.observe(len(operations))
        spans = [operation.span for operation in operations]
        with shared_span("queue operations", spans, operations=len(operations)):
            return await self._queue.append(operations)
