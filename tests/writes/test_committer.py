"""Which writes the committer sends together, in which order, and the results of callers.

The store is held: a call is answered when the test says so, which no database would do.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from service.domain import AtomicBatch, Write, WriteResult
from service.errors import Overloaded
from service.metrics import Metrics
from service.writes.committer import MAX_BATCH_REQUEST, OWN_CALL_WRITES, Committer
from tests.writes.cancels import cancel

Results = Sequence[WriteResult | Exception]


def result(id: str) -> WriteResult:
    """Return the result of the write with this id. Only its identity matters."""
    return cast("WriteResult", f"result of {id}")


@dataclass(slots=True, eq=False)
class Call:
    """One call of the store: the ids of its writes by organization."""

    alone: bool
    ids: dict[str, list[str]]
    answer: asyncio.Future[Any] = field(default_factory=asyncio.Future)

    def apply(self, *, without: Collection[str] = ()) -> None:
        """Return a result for each write; None for an organization that is left out."""
        each = [
            None if organization in without else [result(id) for id in ids]
            for organization, ids in self.ids.items()
        ]
        self.answer.set_result(each[0] if self.alone else each)


class HeldStore:
    """Records its calls in order. The test completes them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def apply(self, organization_id: str, writes: Sequence[Write]) -> Results:
        results: Results = await self._held(alone=True, batches=[(organization_id, writes)])
        return results

    async def apply_batches(
        self, batches: Sequence[tuple[str, Sequence[Write]]]
    ) -> Sequence[Results | None]:
        results: Sequence[Results | None] = await self._held(alone=False, batches=batches)
        return results

    async def apply_atomically(self, organization_id: str, batch: AtomicBatch) -> Results:
        results: Results = await self._held(alone=True, batches=[(organization_id, batch.upserts)])
        return results

    async def _held(self, *, alone: bool, batches: Sequence[tuple[str, Sequence[Write]]]) -> Any:
        call = Call(alone, {id: [each.id for each in writes] for id, writes in batches})
        self.calls.append(call)
        return await call.answer


class Here:
    """A committer, its store, and writers in the background."""

    def __init__(self, **settings: int) -> None:
        self.store = HeldStore()
        self.metrics = Metrics()
        limits = {"connections": 2, "max_organizations": 10, "max_batch": 100, "max_queued": 10_000}
        self.committer = Committer(cast("Any", self.store), self.metrics, **{**limits, **settings})

    async def write(self, organization: str, *ids: str) -> list[asyncio.Task[WriteResult]]:
        """Submit one write after another; return when all possible calls have been made."""
        tasks = [asyncio.create_task(self.committer.submit(organization, cancel(id))) for id in ids]
        await settled()
        return tasks

    async def next_call(self) -> Call:
        """Return the last call, after all possible calls have been made."""
        await settled()
        return self.store.calls[-1]

    @property
    def queued(self) -> float:
        """Return the value of the metric."""
        value = self.metrics.registry.get_sample_value("appointments_queued_writes")
        assert value is not None
        return value


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_write_goes_at_once_and_what_comes_meanwhile_goes_as_the_next_batch() -> None:
    here = Here()
    [first] = await here.write("o", "1")
    [call] = here.store.calls
    assert call.ids == {"o": ["1"]}
    later = await here.write("o", "2", "3", "4")
    assert (len(here.store.calls), here.queued) == (1, 3)
    call.apply()
    assert await first == result("1")
    following = await here.next_call()
    assert (following.ids, here.queued) == ({"o": ["2", "3", "4"]}, 0)
    assert not any(task.done() for task in later)
    following.apply()
    assert [await task for task in later] == [result("2"), result("3"), result("4")]
    await here.committer.drain()
    assert len(here.store.calls) == 2


async def test_what_comes_in_one_turn_of_the_loop_goes_together() -> None:
    here = Here()
    await asyncio.gather(here.write("a", "1", "2"), here.write("b", "1"))
    [call] = here.store.calls
    assert (call.alone, call.ids) == (False, {"a": ["1", "2"], "b": ["1"]})
    call.apply()
    await here.committer.drain()


async def test_one_call_at_a_time_is_shared_and_takes_so_many_organizations() -> None:
    here = Here(connections=4, max_organizations=3)
    for organization in "abcdef":
        await here.write(organization, "1")
    [first] = here.store.calls
    assert first.ids == {"a": ["1"]}
    first.apply()
    second = await here.next_call()
    assert list(second.ids) == ["b", "c", "d"]  # the oldest first
    second.apply()
    third = await here.next_call()
    assert list(third.ids) == ["e", "f"]
    third.apply()
    await here.committer.drain()


async def test_a_call_takes_so_many_writes_and_the_rest_keeps_its_place() -> None:
    here = Here(max_batch=5)
    await here.write("a", "0")
    await here.write("b", "1", "2", "3")
    await here.write("c", "1", "2", "3")
    here.store.calls[0].apply()
    second = await here.next_call()
    assert second.ids == {"b": ["1", "2", "3"], "c": ["1", "2"]}
    second.apply()
    third = await here.next_call()
    assert third.ids == {"c": ["3"]}
    third.apply()
    await here.committer.drain()


async def test_an_organization_with_many_writes_has_a_call_of_its_own() -> None:
    here = Here(connections=2)
    await here.write("small", "0")
    ids = [str(number) for number in range(OWN_CALL_WRITES)]
    await here.write("large", *ids)
    shared, own = here.store.calls
    assert (shared.alone, own.alone) == (False, True)
    assert own.ids == {"large": ids}
    # The only connection for separate calls is busy; the next writes go by a shared call.
    await here.write("larger", *ids)
    assert len(here.store.calls) == 2
    shared.apply()
    third = await here.next_call()
    assert (third.alone, third.ids) == (False, {"larger": ids})
    own.apply()
    third.apply()
    await here.committer.drain()


@pytest.mark.parametrize("settings", [{"connections": 1}, {"max_organizations": 1}])
async def test_without_sharing_every_call_has_one_organization(settings: dict[str, int]) -> None:
    here = Here(**settings)
    await here.write("a", "1")
    await here.write("b", "1")
    for number in range(2):
        call = here.store.calls[number]
        assert (call.alone, len(call.ids)) == (True, 1)
        call.apply()
        await settled()
    await here.committer.drain()
    assert [list(call.ids) for call in here.store.calls] == [["a"], ["b"]]


async def test_what_a_shared_call_leaves_out_goes_alone_with_its_order_kept() -> None:
    """A locked organization delays neither others nor the shared call."""
    here = Here()
    await here.write("first", "0")
    free, locked = (await here.write("free", "1"))[0], await here.write("locked", "1", "2")
    here.store.calls[0].apply()
    shared = await here.next_call()
    assert shared.ids == {"free": ["1"], "locked": ["1", "2"]}
    locked += await here.write("locked", "3")
    shared.apply(without=["locked"])
    assert await free == result("1")
    alone = await here.next_call()
    assert (alone.alone, alone.ids) == (True, {"locked": ["1", "2", "3"]})
    [other] = await here.write("free", "2")
    (await here.next_call()).apply()
    assert await other == result("2")
    assert not any(task.done() for task in locked)
    alone.apply()
    assert [await task for task in locked] == [result("1"), result("2"), result("3")]
    await here.committer.drain()
    # It shares calls again after its queue is empty.
    await here.write("locked", "4")
    call = await here.next_call()
    assert not call.alone
    call.apply()
    await here.committer.drain()


async def test_large_and_locked_organizations_take_turns() -> None:
    here = Here(connections=2)
    await here.write("first", "1")
    locked = {f"locked {number}" for number in range(3)}
    for organization in sorted(locked):
        await here.write(organization, "1")
    here.store.calls[0].apply()
    (await here.next_call()).apply(without=locked)
    await settled()
    await here.write("shared", "1")  # else the large batch would share a call now
    for number in range(2):
        await here.write(f"large {number}", *map(str, range(OWN_CALL_WRITES)))
    order: list[str] = []
    while own := [call for call in here.store.calls if call.alone and not call.answer.done()]:
        [call] = own
        order += call.ids
        call.apply()
        await settled()
    assert order == ["locked 0", "large 0", "locked 1", "large 1", "locked 2"]
    [shared] = [call for call in here.store.calls if not call.answer.done()]
    shared.apply()
    await here.committer.drain()


async def test_a_caller_that_goes_takes_back_what_is_queued_and_nothing_else() -> None:
    here = Here()
    [flying] = await here.write("o", "1")
    gone, stays = await here.write("o", "2", "3")
    flying.cancel()
    gone.cancel()
    await settled()
    here.store.calls[0].apply()
    second = await here.next_call()
    assert second.ids == {"o": ["3"]}
    second.apply()
    assert await stays == result("3")
    await here.committer.drain()
    assert here.queued == 0


async def test_when_all_callers_of_an_organization_have_gone_nothing_is_sent() -> None:
    here = Here()
    await here.write("o", "1")
    for task in await here.write("o", "2", "3"):
        task.cancel()
    await settled()
    here.store.calls[0].apply()
    await here.committer.drain()
    assert (len(here.store.calls), here.queued) == (1, 0)


@pytest.mark.parametrize("size", [1, OWN_CALL_WRITES])
async def test_an_error_of_a_call_is_that_of_each_of_its_writes_and_of_no_other(size: int) -> None:
    here = Here()
    ids = [str(number) for number in range(size)]
    failing = await here.write("o", *ids)
    later = await here.write("o", "later")
    error = RuntimeError("no such luck")
    here.store.calls[0].answer.set_exception(error)
    for task in failing:
        with pytest.raises(RuntimeError, match="no such luck"):
            await task
    (await here.next_call()).apply()
    assert await later[0] == result("later")
    await here.committer.drain()


@pytest.mark.parametrize("size", [1, OWN_CALL_WRITES])
async def test_a_missing_result_fails_the_call_before_anybody_has_one(size: int) -> None:
    here = Here()
    ids = [str(number) for number in range(size + 1)]
    tasks = await here.write("o", *ids)
    [call] = here.store.calls
    few = [result(id) for id in ids[1:]]
    call.answer.set_result(few if call.alone else [few])
    for task in tasks:
        with pytest.raises(ValueError, match=f"^{size} results for {size + 1}$"):
            await task
    await here.committer.drain()


async def test_a_refusal_is_raised_to_its_own_caller() -> None:
    here = Here()
    fine, refused = await here.write("o", "1", "2")
    here.store.calls[0].answer.set_result([[result("1"), KeyError("2")]])
    assert await fine == result("1")
    with pytest.raises(KeyError, match="2"):
        await refused
    await here.committer.drain()


async def test_a_batch_is_answered_write_by_write_and_goes_in_one_call() -> None:
    here = Here()
    writes = [cancel(id) for id in "abc"]
    answering = asyncio.create_task(here.committer.submit_all("o", writes))
    await settled()
    [call] = here.store.calls
    assert call.ids == {"o": ["a", "b", "c"]}
    failure = KeyError("b")
    call.answer.set_result([[result("a"), failure, result("c")]])
    assert await answering == [result("a"), failure, result("c")]
    await here.committer.drain()


async def test_too_many_writes_are_refused_with_nothing_queued() -> None:
    here = Here(max_queued=3 * MAX_BATCH_REQUEST)
    await here.write("o", "first")
    half = 3 * MAX_BATCH_REQUEST // 2
    waiting = asyncio.create_task(here.committer.submit_all("o", [cancel("1")] * half))
    await settled()
    with pytest.raises(Overloaded, match=f"^{half} writes wait already, {half} of them"):
        await here.committer.submit("o", cancel("2"))
    # The call that takes these frees the same room in the queue.
    others = [asyncio.create_task(here.committer.submit_all("other", [cancel("1")] * half))]
    await settled()
    others += [asyncio.create_task(here.committer.submit_all("other", [cancel("1")] * 100))]
    await settled()
    assert here.queued == 2 * half
    with pytest.raises(Overloaded, match=f"^{2 * half} writes wait already, 0 of them"):
        await here.committer.submit("third", cancel("1"))
    assert here.queued == 2 * half
    while not all(task.done() for task in (waiting, *others)):
        for call in here.store.calls:
            if not call.answer.done():
                call.apply()
        await settled()
    await here.committer.drain()
    assert here.queued == 0


def atomic(*ids: str) -> AtomicBatch:
    """Return an atomic batch. The committer looks only at how many writes it has."""
    return AtomicBatch(upserts=cast("Any", [cancel(id) for id in ids]), validate_only=False)


async def submitted(here: Here, organization: str, *ids: str) -> asyncio.Task[list[WriteResult]]:
    task = asyncio.create_task(here.committer.submit_batch(organization, atomic(*ids)))
    await settled()
    return task


async def test_an_atomic_batch_has_a_call_of_its_own_and_keeps_its_place() -> None:
    here = Here()
    await here.write("o", "1")
    before = await here.write("o", "2", "3")
    batch = await submitted(here, "o", "a", "b")
    after = await here.write("o", "4")
    assert here.queued == 5
    order = []
    while open_calls := [call for call in here.store.calls if not call.answer.done()]:
        [call] = open_calls
        order.append((call.ids["o"], call.alone))
        call.apply()
        await settled()
    assert order == [(["1"], False), (["2", "3"], False), (["a", "b"], True), (["4"], False)]
    assert await batch == [result("a"), result("b")]
    assert [await task for task in (*before, *after)] == [result(id) for id in "234"]
    await here.committer.drain()
    assert here.queued == 0


@pytest.mark.parametrize("settings", [{}, {"connections": 1}])
async def test_an_atomic_batch_whose_caller_has_gone_is_not_sent(settings: dict[str, int]) -> None:
    here = Here(**settings)
    await here.write("o", "1")
    batch = await submitted(here, "o", "a", "b")
    [after] = await here.write("o", "2")
    batch.cancel()
    await settled()
    here.store.calls[0].apply()
    following = await here.next_call()
    assert following.ids == {"o": ["2"]}
    following.apply()
    assert await after == result("2")
    await here.committer.drain()
    assert here.queued == 0


async def test_an_atomic_batch_in_flight_is_completed_without_its_caller() -> None:
    here = Here()
    batch = await submitted(here, "o", "a", "b")
    batch.cancel()
    await settled()
    [call] = here.store.calls
    call.apply()
    await here.committer.drain()
    assert here.queued == 0


async def test_atomic_batches_of_an_organization_do_not_delay_others() -> None:
    here = Here(connections=2)
    batches = [await submitted(here, "o", "a"), await submitted(here, "o", "b")]
    [other] = await here.write("other", "1")
    own, shared = here.store.calls
    assert (own.ids, shared.ids) == ({"o": ["a"]}, {"other": ["1"]})
    shared.apply()
    assert await other == result("1")
    own.apply()
    (await here.next_call()).apply()
    assert [await batch for batch in batches] == [[result("a")], [result("b")]]
    await here.committer.drain()


async def test_the_writes_of_an_atomic_batch_count_in_the_queue() -> None:
    here = Here(max_queued=2 * MAX_BATCH_REQUEST)
    await here.write("o", "first")
    waiting = await submitted(here, "o", *map(str, range(MAX_BATCH_REQUEST)))
    with pytest.raises(Overloaded, match=f"^{MAX_BATCH_REQUEST} writes wait already"):
        await here.committer.submit_batch("o", atomic("one more"))
    assert here.queued == MAX_BATCH_REQUEST
    here.store.calls[0].apply()
    (await here.next_call()).apply()
    assert len(await waiting) == MAX_BATCH_REQUEST
    await here.committer.drain()


async def test_the_error_of_an_atomic_batch_is_that_of_its_caller_alone() -> None:
    here = Here()
    batch = await submitted(here, "o", "a", "b")
    [later] = await here.write("o", "1")
    here.store.calls[0].answer.set_exception(RuntimeError("no such luck"))
    with pytest.raises(RuntimeError, match="no such luck"):
        await batch
    (await here.next_call()).apply()
    assert await later == result("1")
    await here.committer.drain()
