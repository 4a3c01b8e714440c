"""One call for everything that arrived while the previous call was under way.

There is no timer: a single item is handled immediately; under load, batches grow by
themselves. The group commit of writes (`service/writes/committer.py`) has a queue for each
organization and several calls under way, so it does not use this.
"""

import asyncio
import contextvars
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls `handle` with batches of up to `most` items, one batch at a time.

    `handle` returns a result or an error for each item, in order. If it raises an error,
    every item of the batch gets that error.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        most: int = sys.maxsize,
    ) -> None:
        self._handle = handle
        self._most = most
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
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, result))
        if self._task is None:
            # Not in the context of the first caller, since it works for all of them.
            self._task = loop.create_task(self._run(), context=contextvars.Context())
        return await result

    async def drain(self) -> None:
        """Wait until no item waits and no call is under way."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while self._waiting:
                taken = self._waiting[: self._most]
                self._waiting = self._waiting[self._most :]
                batch = [(item, result) for item, result in taken if not result.done()]
                if batch:
                    await self._run_batch(batch)
        finally:
            self._task = None

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
