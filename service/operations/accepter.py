"""Accepting: operations that arrive at once are appended to the queue together.

While an append is under way further operations wait; when it returns, all that wait go as
the next one. It takes no organization's lock.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

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
    """Appends to a queue; at most `max_waiting` operations wait for that."""

    def __init__(self, queue: OperationQueue, metrics: Metrics, *, max_waiting: int) -> None:
        self._queue = queue
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._waiting: list[tuple[Operation, asyncio.Future[None]]] = []
        self._appending: asyncio.Task[None] | None = None

    async def accept(self, operation: Operation) -> None:
        """Return once the operation is stored durably.

        Raises Overloaded, with nothing accepted, when too many wait already, and what the
        queue raises.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(
                f"{len(self._waiting)} operations wait to be accepted; nothing was accepted,"
                " try again later"
            )
        loop = asyncio.get_running_loop()
        accepted: asyncio.Future[None] = loop.create_future()
        self._waiting.append((operation, accepted))
        if self._appending is None:
            self._appending = loop.create_task(self._append())
        await accepted

    async def drain(self) -> None:
        """Wait until nothing is being accepted."""
        while self._appending is not None:
            await asyncio.wait({self._appending})

    async def _append(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = (
                    self._waiting[:MAX_APPENDED],
                    self._waiting[MAX_APPENDED:],
                )
                group = [waiting for waiting in taken if not waiting[1].done()]
                if not group:
                    continue
                self._metrics.accepted_together.observe(len(group))
                try:
                    failures = await self._queue.append([operation for operation, _ in group])
                    answers = list(zip(group, failures, strict=True))
                except Exception as error:  # noqa: BLE001  # each caller is to learn of it
                    answers = [(waiting, error) for waiting in group]
                for (_, accepted), failure in answers:
                    if accepted.done():
                        continue
                    if failure is None:
                        accepted.set_result(None)
                    else:
                        accepted.set_exception(failure)
        finally:
            self._appending = None
