"""One call for everything that arrived while the previous call was under way.

A single item is handled immediately; under load, batches grow by themselves. The group commit of
writes (`service/writes/committer.py`) has a queue for each organization and several calls under
way, so it does not use this.
"""

import asyncio
import contextvars
import sys
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Generic, TypeVar

from runtime.tracing import current_span
from service.errors import Overloaded

# A batch that gathers begins after so many seconds without a further item: while it has fewer than
# the previous batch, and afterwards.
EXPECTED_WITHIN = 0.001
MORE_WITHIN = 0.00025
# Seconds. The longest wait while items keep arriving.
MAX_WAIT = 0.004

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls `handle` with batches of up to `most` items, one batch at a time.

    `handle` returns a result or an error for each item, in order. If it raises an error,
    every item of the batch gets that error.

    At most `max_waiting` items wait. One more raises Overloaded with their number and `refusal`.

    With `gather`, a batch that follows one with several items waits for those that have arrived but
    are not read yet. gRPC opens one call after another, so a busy service reads few calls while a
    short statement runs, and the others wait in gRPC.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        most: int = sys.maxsize,
        gather: bool = False,
        max_waiting: int = sys.maxsize,
        refusal: str = "requests wait for the database; try later",
    ) -> None:
        self._handle = handle
        self._most = most
        self._gather = gather
        self._max_waiting = max_waiting
        self._refusal = refusal
        self._previous = 0  # the number of items in the batch before
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of items that are in no batch yet."""
        return len(self._waiting)

    async def submit(self, item: Item) -> Result:
        """Return the result of an item, or raise its error.

        Its batch is handled after this call, so it sees what happened before. If the caller is
        cancelled while the item waits, the item is dropped.
        """
        if self.waiting >= self._max_waiting:
            raise Overloaded(f"{self.waiting} {self._refusal}")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, result))
        if self._task is None:
            # Not in the context of the first caller, since it works for all of them.
            self._task = loop.create_task(self._run(), context=contextvars.Context())
        return await result

    async def submit_sql(self, item: Item, statement: str) -> Result:
        """Submit an item of which `handle` runs a statement, in a span of the item's call.

        The statement is for several, and may wait for the one before: each has a span of its own.
        """
        span = current_span.get()
        if span is None:
            return await self.submit(item)
        with span.child("SQL", kind="client", database="postgresql", statement=statement):
            return await self.submit(item)

    async def drain(self) -> None:
        """Wait until no item waits and no call is under way."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while self._waiting:
                if self._gather and self._previous > 1:
                    await self._arrived()
                taken = self._waiting[: self._most]
                self._waiting = self._waiting[self._most :]
                batch = [(item, result) for item, result in taken if not result.done()]
                self._previous = len(batch)
                if batch:
                    await self._run_batch(batch)
        finally:
            self._task = None

    async def _arrived(self) -> None:
        """Wait while items keep arriving, at most MAX_WAIT."""
        began = changed = monotonic()
        count = len(self._waiting)
        while count < self._most:
            await asyncio.sleep(0)
            now = monotonic()
            quiet = MORE_WITHIN if count >= self._previous else EXPECTED_WITHIN
            if len(self._waiting) != count:
                count, changed = len(self._waiting), now
            elif now - changed > quiet:
                break
            if now - began > MAX_WAIT:
                break

    async def _run_batch(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        answers: list[tuple[asyncio.Future[Result], Result | Exception]]
        try:
            outcomes = await self._handle([item for item, _ in batch])
            answers = list(zip((result for _, result in batch), outcomes, strict=True))
        except Exception as error:  # noqa: BLE001  # each caller is to learn of it
            answers = [(result, error) for _, result in batch]
        for result, outcome in answers:
            if result.done():
                continue
            if isinstance(outcome, Exception):
                result.set_exception(outcome)
            else:
                result.set_result(outcome)
