"""Results of work that takes long, shared by all requests that need the same."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from runtime.recent import Recent
from runtime.turns import result_of

T = TypeVar("T")

MAX_THREADS = 2
"""At a time. Making a result may take many times the memory of the result."""


class SharedResults(Generic[T]):
    """Applies a pure function in another thread, once for equal contents, and keeps the last.

    The event loop continues meanwhile. What is not asked for again is dropped within seconds.
    `max_bytes` bounds the memory of contents and results together. A result takes `growth` times
    the memory of its content.
    """

    def __init__(self, compute: Callable[[bytes], T], *, growth: float, max_bytes: int) -> None:
        self._compute = compute
        self._growth = growth
        self._max_bytes = max_bytes
        self._threads = asyncio.Semaphore(MAX_THREADS)
        self._results: Recent[bytes, asyncio.Task[T]] = Recent(max_size=max_bytes)

    async def of(self, content: bytes) -> T:
        """Return the result. Raises what the function raises."""
        result = self._results.get(content)
        if result is None:
            result = asyncio.create_task(self._made(content))
            result.add_done_callback(lambda task: self._keep(content, task))
            self._results.put(content, result, size=self._size(content))
        # A caller that has gone must not cancel it for the others.
        return await result_of(result)

    async def _made(self, content: bytes) -> T:
        async with self._threads:
            return await asyncio.to_thread(self._compute, content)

    def _keep(self, content: bytes, task: asyncio.Task[T]) -> None:
        """Drop a result that failed, or that is too large to be kept."""
        failed = task.cancelled() or task.exception() is not None
        too_large = self._size(content) > self._max_bytes
        if (failed or too_large) and self._results.get(content) is task:
            self._results.drop(content)

    def _size(self, content: bytes) -> int:
        return int(len(content) * (1 + self._growth))
