"""Items that arrive during a call share the next call."""

import asyncio
from collections.abc import Sequence

import pytest

from service import batcher as batching
from service.batcher import Batcher
from service.errors import Overloaded


class Handler:
    """Returns ten times each number once it is released; odd numbers are refused."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = asyncio.Semaphore(0)
        self.begun = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        self.begun.set()
        await self.may_go.acquire()
        return [KeyError(item) if item % 2 else 10 * item for item in items]


@pytest.fixture
def handler() -> Handler:
    return Handler()


async def first_of(batcher: Batcher[int, int], handler: Handler) -> asyncio.Task[int]:
    """Start a call with the item 0."""
    first = asyncio.create_task(batcher.submit(0))
    await handler.begun.wait()
    return first


async def test_what_waits_goes_together(handler: Handler) -> None:
    batcher = Batcher(handler, most=3)
    first = await first_of(batcher, handler)
    others = [asyncio.create_task(batcher.submit(item)) for item in range(2, 7)]
    await asyncio.sleep(0)
    assert batcher.waiting == 5
    assert handler.batches == [[0]]
    for _ in range(3):
        handler.may_go.release()
    answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert handler.batches == [[0], [2, 3, 4], [5, 6]]
    assert [answer for answer in answers if isinstance(answer, int)] == [0, 20, 40, 60]
    assert [str(answer) for answer in answers if isinstance(answer, KeyError)] == ["3", "5"]


async def test_one_item_more_than_may_wait_is_refused(handler: Handler) -> None:
    batcher = Batcher(handler, max_waiting=2, refusal="items wait")
    first = await first_of(batcher, handler)
    others = [asyncio.create_task(batcher.submit(item)) for item in (2, 4)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match=r"^2 items wait$"):
        await batcher.submit(6)
    for _ in range(2):
        handler.may_go.release()
    assert await asyncio.gather(first, *others) == [0, 20, 40]
    assert handler.batches == [[0], [2, 4]]


async def test_an_item_whose_caller_has_gone_is_dropped(handler: Handler) -> None:
    batcher = Batcher(handler)
    first = await first_of(batcher, handler)
    gone, stays = (asyncio.create_task(batcher.submit(item)) for item in (2, 4))
    await asyncio.sleep(0)
    gone.cancel()
    for _ in range(2):
        handler.may_go.release()
    assert [await first, await stays] == [0, 40]
    assert handler.batches == [[0], [4]]


async def test_a_caller_that_goes_during_the_call_keeps_no_other_from_its_result(
    handler: Handler,
) -> None:
    batcher = Batcher(handler)
    first = await first_of(batcher, handler)
    gone, stays = (asyncio.create_task(batcher.submit(item)) for item in (2, 4))
    handler.begun.clear()
    handler.may_go.release()
    await first
    await handler.begun.wait()
    gone.cancel()
    handler.may_go.release()
    assert await stays == 40
    assert handler.batches == [[0], [2, 4]]


async def test_draining_waits_for_all(handler: Handler) -> None:
    batcher = Batcher(handler)
    await batcher.drain()
    first = await first_of(batcher, handler)
    second = asyncio.create_task(batcher.submit(2))
    draining = asyncio.create_task(batcher.drain())
    handler.may_go.release()
    assert await first == 0
    assert not draining.done()
    handler.may_go.release()
    await draining
    assert await second == 20


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is expected is waited for as long as the test takes, and nothing else."""
    monkeypatch.setattr(batching, "EXPECTED_WITHIN", 60.0)
    monkeypatch.setattr(batching, "MORE_WITHIN", 0.0)
    monkeypatch.setattr(batching, "MAX_WAIT", 60.0)


async def after_two_items(handler: Handler) -> Batcher[int, int]:
    """Return a gathering batcher whose last batch had two items."""
    batcher = Batcher(handler, gather=True)
    for _ in range(100):
        handler.may_go.release()
    await asyncio.gather(*(batcher.submit(item) for item in (0, 2)))
    assert handler.batches == [[0, 2]]
    return batcher


@pytest.mark.usefixtures("patient")
async def test_a_batch_after_a_larger_one_waits_for_what_has_arrived(handler: Handler) -> None:
    batcher = await after_two_items(handler)

    async def read_late(item: int) -> int:
        for _ in range(20):
            await asyncio.sleep(0)
        return await batcher.submit(item)

    await asyncio.gather(batcher.submit(4), read_late(6))
    assert handler.batches[1:] == [[4, 6]]


@pytest.mark.usefixtures("patient")
async def test_a_single_caller_does_not_wait(handler: Handler) -> None:
    batcher = Batcher(handler, gather=True)
    for item in (0, 2, 4):
        handler.may_go.release()
        async with asyncio.timeout(10):
            await batcher.submit(item)
    assert handler.batches == [[0], [2], [4]]


async def test_fewer_items_than_before_wait_for_a_moment(handler: Handler) -> None:
    batcher = await after_two_items(handler)
    async with asyncio.timeout(10):
        await batcher.submit(4)
    assert handler.batches[1:] == [[4]]


@pytest.mark.usefixtures("patient")
async def test_a_batch_does_not_wait_longer_while_items_keep_arriving(
    handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MORE_WITHIN", 60.0)
    monkeypatch.setattr(batching, "MAX_WAIT", 0.01)
    batcher = await after_two_items(handler)
    answers: list[asyncio.Task[int]] = []
    async with asyncio.timeout(10):
        while len(handler.batches) < 2:
            answers.append(asyncio.create_task(batcher.submit(4)))
            await asyncio.sleep(0)
        await asyncio.gather(*answers)
    assert sum(map(len, handler.batches)) == 2 + len(answers)


@pytest.mark.usefixtures("patient")
async def test_a_full_batch_does_not_wait(handler: Handler) -> None:
    batcher = Batcher(handler, most=2, gather=True)
    for _ in range(100):
        handler.may_go.release()
    async with asyncio.timeout(10):
        await asyncio.gather(*(batcher.submit(item) for item in range(0, 8, 2)))
    assert handler.batches == [[0, 2], [4, 6]]
