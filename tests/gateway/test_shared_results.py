"""Results of long work are computed once, for all who need them."""

import asyncio
import threading

import pytest

from gateway.http.shared_results import MAX_THREADS, SharedResults


class Work:
    """A function that waits until the test lets it go on, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.may_end = threading.Event()
        self.fails = False
        self.began = threading.Semaphore(0)
        self.ended = 0

    def __call__(self, content: bytes) -> bytes:
        self.calls.append(content)
        assert len(self.calls) - self.ended <= MAX_THREADS
        self.began.release()
        assert self.may_end.wait(10)
        self.ended += 1
        if self.fails:
            raise ValueError(content)
        return content * 2


@pytest.fixture
def work() -> Work:
    return Work()


async def test_equal_requests_share_a_result_and_the_loop_continues(work: Work) -> None:
    results = SharedResults(work, growth=2, max_bytes=100)
    waiting = [asyncio.create_task(results.of(b"same")) for _ in range(3)]
    await asyncio.sleep(0)  # this task runs although the work has not ended
    waiting[0].cancel()
    work.may_end.set()

    assert await asyncio.gather(*waiting[1:]) == [b"samesame"] * 2
    assert await results.of(b"same") == b"samesame"
    assert waiting[0].cancelled()
    assert work.calls == [b"same"]


async def test_the_least_recently_used_are_dropped_first(work: Work) -> None:
    work.may_end.set()
    results = SharedResults(work, growth=2, max_bytes=9)
    for content in (b"1", b"2", b"3", b"1", b"4", b"1", b"3", b"2"):
        await results.of(content)
    assert work.calls == [b"1", b"2", b"3", b"4", b"2"]


async def test_a_result_that_is_too_large_is_not_kept(work: Work) -> None:
    work.may_end.set()
    results = SharedResults(work, growth=2, max_bytes=9)
    for content in (b"1", b"large", b"large", b"2", b"2"):
        await results.of(content)
    assert work.calls == [b"1", b"large", b"large", b"2"]


async def test_a_failure_is_raised_to_all_waiters_and_is_not_kept(work: Work) -> None:
    results = SharedResults(work, growth=2, max_bytes=100)
    work.fails = True
    waiting = [asyncio.create_task(results.of(b"a")) for _ in range(2)]
    await asyncio.sleep(0)
    work.may_end.set()
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, ValueError)
    work.fails = False
    assert await results.of(b"a") == b"aa"
    assert work.calls == [b"a", b"a"]


async def test_few_threads_work_at_a_time(work: Work) -> None:
    results = SharedResults(work, growth=2, max_bytes=100)
    waiting = [asyncio.create_task(results.of(b"%d" % number)) for number in range(6)]
    for _ in range(MAX_THREADS):
        assert await asyncio.to_thread(work.began.acquire, timeout=10)
    work.may_end.set()
    assert await asyncio.gather(*waiting) == [b"%d%d" % (number, number) for number in range(6)]
