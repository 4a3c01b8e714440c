"""Work outlives a caller that is cancelled, and a turn lasts as long as the work done in it."""

import asyncio
import gc
import weakref
from contextlib import suppress

import pytest

from runtime.turns import done_in_turn, result_of


class Work:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.running = 0
        self.done = 0
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.fails = False

    async def __call__(self) -> int:
        self.running += 1
        self.began.set()
        await self.may_end.wait()
        self.running -= 1
        self.done += 1
        if self.fails:
            raise ValueError
        return self.done


async def cancelled(task: asyncio.Task[int]) -> bool:
    task.cancel()
    await asyncio.wait([task], timeout=1)
    return task.cancelled()


async def test_a_cancelled_caller_cancels_no_task_of_others() -> None:
    work = Work()
    task = asyncio.create_task(work())
    first, second = (asyncio.create_task(result_of(task)) for _ in range(2))
    await work.began.wait()
    assert await cancelled(first)
    work.may_end.set()
    assert await second == 1
    assert await result_of(task) == 1


async def test_a_task_that_is_cancelled_cancels_its_callers() -> None:
    task = asyncio.create_task(Work()())
    caller = asyncio.create_task(result_of(task))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_an_error_that_a_caller_takes_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Work()
    work.fails = True
    task = asyncio.create_task(work())
    first, second = (asyncio.create_task(result_of(task)) for _ in range(2))
    await work.began.wait()
    assert await cancelled(first)
    work.may_end.set()
    with pytest.raises(ValueError):  # noqa: PT011
        await second
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_the_turn_of_a_cancelled_caller_lasts_until_its_work_ends() -> None:
    turn, work = asyncio.Lock(), Work()
    first, second = (asyncio.create_task(done_in_turn(turn, work)) for _ in range(2))
    await work.began.wait()

    assert await cancelled(first)
    for _ in range(10):
        await asyncio.sleep(0)
        assert work.running == 1
    work.may_end.set()

    assert await second == 2
    assert not turn.locked()


async def test_a_caller_that_waits_for_its_turn_leaves_nothing_behind() -> None:
    turn, work = asyncio.Lock(), Work()
    first, second = (asyncio.create_task(done_in_turn(turn, work)) for _ in range(2))
    await work.began.wait()

    assert await cancelled(second)
    work.may_end.set()

    assert await first == 1
    await asyncio.sleep(0)
    assert (work.running, work.done, turn.locked()) == (0, 1, False)


async def test_an_error_ends_the_turn_and_needs_no_caller() -> None:
    """The suite fails if an error was never retrieved."""
    turn, work = asyncio.Lock(), Work()
    work.fails = True
    first, second = (asyncio.create_task(done_in_turn(turn, work)) for _ in range(2))
    await work.began.wait()
    assert await cancelled(first)
    work.may_end.set()
    with pytest.raises(ValueError):  # noqa: PT011
        await second
    assert not turn.locked()
    gc.collect()


async def test_an_error_keeps_nothing_of_the_work_in_memory() -> None:
    class Large:
        pass

    kept: list[weakref.ref[Large]] = []

    async def fail() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise ValueError

    gc.disable()
    try:
        with suppress(ValueError):
            await done_in_turn(asyncio.Lock(), fail)
        await asyncio.sleep(0)
        assert kept[0]() is None
    finally:
        gc.enable()
