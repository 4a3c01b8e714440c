"""Background loops back off after errors, log and count them, and never spin."""

import asyncio
import gc
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any, cast

import pytest
from appointments.v1 import appointment_service_pb2
from grpc_health.v1 import health
from structlog.testing import capture_logs

from runtime.backoff import FIRST_DELAY, LONGEST_DELAY, Backoff, run_forever
from runtime.logs import log_event_loop
from service.amqp import Broker
from service.events.publisher import EventPublisher
from service.events.store import EventStore
from service.metrics import Metrics
from service.operations.accepter import Accepter, OperationQueue
from service.operations.operation import new_operation
from service.operations.postgres.worker import PostgresQueueWorker
from service.operations.rabbitmq.applier import OperationApplier
from service.operations.results import OperationResults
from service.postgres.epochs import FIRST
from service.postgres.notifications import Wakeup
from service.postgres.purge import Purge
from service.reads.moments import Moments
from service.reads.store import ReadStore
from service.reads.watch import Watch
from service.rpc.health import watch_readiness
from service.writes.committer import Committer
from service.writes.store import WriteStore
from tests.writes.cancels import cancel

# Seconds that a loop is looked at, and how often it may try meanwhile: at once, after half a
# second at least, after one more, and so on.
SECONDS = 2.5
MOST_ATTEMPTS = 4

Work = Callable[[], Awaitable[object]]


class Broken:
    """A database in which every statement fails with an unexpected error."""

    epoch = FIRST
    distributed = False
    max_waiting = 10

    def __init__(self) -> None:
        self.times: list[float] = []

    async def fetch(self, *_: object, **__: object) -> Any:
        self.times.append(monotonic())
        await asyncio.sleep(0)
        raise KeyError("injected")

    fetch_across = fetch


@pytest.fixture
def broken() -> Broken:
    return Broken()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def counted(metrics: Metrics) -> float:
    """Return the number of unexpected errors of all loops in the metrics."""
    name = "appointments_unexpected_errors_total"
    return sum(
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    )


async def errors_of(work: Work) -> list[dict[str, Any]]:
    """Run a loop for a while; return the unexpected errors that it logged."""
    with capture_logs() as logs:
        task = asyncio.ensure_future(work())
        await asyncio.wait({task}, timeout=SECONDS)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return [dict(each) for each in logs if each["event"] == "unexpected error"]


def operations(database: Any, metrics: Metrics) -> Work:
    return PostgresQueueWorker(
        database,
        metrics,
        wakeup=Wakeup(),
        changed=lambda: None,
        concurrency=1,
        max_organizations=10,
        max_batch=10,
        lease=10,
        poll_interval=0.01,
    ).run


def operations_in_rabbitmq(database: Any, metrics: Metrics) -> Work:
    return OperationApplier(database, metrics, lambda: None).wait_for_database


def readiness(database: Any, _: Metrics) -> Work:
    service = appointment_service_pb2.DESCRIPTOR.services_by_name["AppointmentService"]
    servicer = health.aio.HealthServicer()
    return partial(watch_readiness, [service], servicer, database, probe_timeout=1.0)


def publisher(database: Any, metrics: Metrics) -> Work:
    broker = cast("Broker", None)  # it never comes to that
    return EventPublisher(
        EventStore(database, "test"), broker, metrics, Wakeup(), interval=0.01, lease=10
    ).run


def purge(database: Any, _: Metrics) -> Work:
    return Purge(database, table="operations", time="finished_at", keep=timedelta(days=1)).run


def results(database: Any, metrics: Metrics) -> Work:
    reader = OperationResults(
        database,
        metrics,
        retention=timedelta(days=1),
        max_hold=timedelta(days=1),
        poll_interval=0.01,
        queued_elsewhere=False,
    )
    reader._waiting = {("some", uuid.uuid4()): {asyncio.Event()}}
    return reader._watch


@pytest.mark.parametrize(
    "loop", [operations, operations_in_rabbitmq, readiness, publisher, purge, results]
)
async def test_a_loop_that_fails_waits_and_says_so(
    broken: Broken, metrics: Metrics, loop: Callable[[Any, Metrics], Work]
) -> None:
    work = loop(broken, metrics)
    errors = await errors_of(lambda: run_forever("test", work, metrics.unexpected_errors))
    assert 2 <= len(broken.times) <= MOST_ATTEMPTS
    assert len(broken.times) - 1 <= len(errors) == counted(metrics)
    assert all(isinstance(each["exc_info"], KeyError) for each in errors)


async def test_watchers_that_come_again_wait_for_the_next_look(
    broken: Broken, metrics: Metrics
) -> None:
    watch = Watch(
        cast("Any", broken),
        cast("ReadStore", None),
        metrics,
        interval=0.01,
        outage_timeout=5.0,
        max_watchers=10,
    )

    async def come_again() -> None:
        while True:
            with watch._watching("some") as organization, suppress(KeyError):
                assert watch._polling is not None
                await organization.wait_beyond(0)
            await asyncio.sleep(0.01)

    errors = await errors_of(come_again)
    if watch._polling is not None:  # it ends by itself when nobody watches
        watch._polling.cancel()
    assert 2 <= len(broken.times) <= MOST_ATTEMPTS
    assert len(errors) == len(broken.times) == counted(metrics)


async def test_the_waits_grow_to_a_bound_and_begin_anew(metrics: Metrics) -> None:
    backoff = Backoff("test", metrics.unexpected_errors)
    waits = [backoff.failed(KeyError()) for _ in range(10)]
    longest = [min(FIRST_DELAY * 2.0**number, LONGEST_DELAY) for number in range(10)]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))
    backoff.succeeded()
    assert backoff.failed(KeyError()) <= FIRST_DELAY
    assert counted(metrics) == 11


async def test_a_duty_that_ends_by_itself_is_taken_up_again(metrics: Metrics) -> None:
    times: list[float] = []

    async def ends() -> None:
        times.append(monotonic())

    errors = await errors_of(lambda: run_forever("test", ends, metrics.unexpected_errors))
    assert 2 <= len(times) <= MOST_ATTEMPTS
    assert [str(each["exc_info"]) for each in errors] == ["test ended by itself"] * len(errors)


class Forgetful:
    """A store or queue that returns too few results."""

    async def apply(self, *_: object) -> list[object]:
        return []

    async def apply_batches(self, *_: object) -> list[object]:
        return []

    async def append(self, *_: object) -> list[object]:
        return []


@pytest.mark.parametrize("max_organizations", [1, 10])
async def test_every_writer_learns_of_an_answer_that_is_not_whole(
    metrics: Metrics, max_organizations: int
) -> None:
    committer = Committer(
        cast("WriteStore", Forgetful()),
        metrics,
        connections=2,
        max_organizations=max_organizations,
        max_batch=10,
        max_queued=100,
    )
    async with asyncio.timeout(5):
        answers = await asyncio.gather(
            *(committer.submit(f"org {number % 2}", cancel(str(number))) for number in range(4)),
            return_exceptions=True,
        )
        await committer.drain()
    assert [type(answer) for answer in answers] == [ValueError] * 4


async def test_every_submitter_learns_of_an_answer_that_is_not_whole(metrics: Metrics) -> None:
    accepter = Accepter(cast("OperationQueue", Forgetful()), metrics, max_waiting=10)
    async with asyncio.timeout(5):
        answers = await asyncio.gather(
            *(accepter.accept(new_operation("some", cancel(str(each)))) for each in range(3)),
            return_exceptions=True,
        )
    assert [type(answer) for answer in answers] == [ValueError] * 3


async def test_every_reader_learns_that_asking_failed(broken: Broken) -> None:
    moments = Moments(cast("Any", broken))
    async with asyncio.timeout(5):
        answers = await asyncio.gather(
            *(moments.of("some") for _ in range(3)), return_exceptions=True
        )
    assert [type(answer) for answer in answers] == [KeyError] * 3


async def test_what_nobody_awaits_is_logged() -> None:
    async def fail() -> None:
        raise KeyError("nobody looks")

    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    log_event_loop()
    try:
        with capture_logs() as logs:
            task = asyncio.create_task(fail())
            await asyncio.wait({task})
            del task
            gc.collect()
            await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(before)
    [found] = [each for each in logs if each["event"] == "unhandled in the event loop"]
    assert found["problem"] == "Task exception was never retrieved"
    assert isinstance(found["exc_info"], KeyError)
