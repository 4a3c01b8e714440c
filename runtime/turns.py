"""Work that does not end when its caller does, and turns for it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

T = TypeVar("T")


async def result_of(task: asyncio.Future[T]) -> T:
    """Wait for a task and return its result. A caller that is cancelled does not cancel the task.

    `asyncio.shield` does so too. But in CPython 3.14 before 3.14.9, it logs an error that the task
    raises after its caller was cancelled, even if another caller takes the error.
    """
    if not task.done():
        await asyncio.wait([task])
    try:
        return task.result()
    finally:
        # The task has the error, and the error has this frame, and those with the work's objects.
        # Without a cycle they are freed now, and not when garbage is collected.
        del task


async def done_in_turn(
    turn: AbstractAsyncContextManager[object], work: Callable[[], Awaitable[T]]
) -> T:
    """Wait for a turn, do the work in it, and return its result.

    A caller that is cancelled returns at once. If it still waits for its turn, the work is not
    done. Otherwise the work continues, as a thread or a statement would anyway, and the turn lasts
    until the work ends. So a turn limits the work that runs, whether or not somebody waits for it.
    """
    held = AsyncExitStack()
    await held.enter_async_context(turn)

    async def finish() -> T:
        async with held:
            return await work()

    task = asyncio.create_task(finish())
    # Without a caller, nobody takes the error.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        return await result_of(task)
    finally:
        del task  # for the same reason as in `result_of`
