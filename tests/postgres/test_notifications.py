"""Workers are notified of work, and poll for it where notifications do not arrive."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
from appointments.v1 import webhook_service_pb2 as hooks
from appointments.v1.webhook_service_pb2_grpc import WebhookServiceStub
from psycopg import sql
from structlog.testing import capture_logs

from service.metrics import Metrics
from service.operations.operation import new_operation
from service.operations.postgres.queue import PostgresQueue
from service.operations.postgres.worker import PostgresQueueWorker
from service.postgres import notifications
from service.postgres.database import Database
from service.postgres.notifications import CHANNEL, Listener, Notifier, Wakeup, Work
from service.postgres.session import WORKER_ROLE, Timeouts
from tests.api import TIMEOUT
from tests.conftest import CreateDatabase, OwnPostgres
from tests.databases import database_of
from tests.observing import until
from tests.operations.place import Place
from tests.writes.cancels import cancel

TIMEOUTS = Timeouts(connection=5.0, lock=5.0, statement=5.0)
FOREVER = 3600.0

LISTENING = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND query = %s"


class Patient(Wakeup):
    """Waits for a notification as long as it takes, so that polling finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    async def wait(self, at_most: float = FOREVER) -> None:
        self.waits += 1
        await super().wait(at_most)


class Listening:
    """A listener in this process, whose loop for operations is patient."""

    def __init__(self, url: str, database: Database) -> None:
        self.database = database
        self.metrics = Metrics()
        self.listener = Listener(url, database, TIMEOUTS, self.metrics)
        self.wakeup = Patient()
        self.listener._wakeups[Work.OPERATIONS].append(self.wakeup)

    async def is_listening(self) -> None:
        await observed(lambda: self.wakeup.listening)

    def worker(self) -> PostgresQueueWorker:
        return PostgresQueueWorker(
            self.database,
            self.metrics,
            wakeup=self.wakeup,
            changed=lambda: None,
            concurrency=1,
            max_organizations=10,
            max_batch=10,
            lease=30.0,
            poll_interval=0.01,
        )


@asynccontextmanager
async def listening(url: str, notified: str | None = None) -> AsyncIterator[Listening]:
    """Listen on a database. The listener's proof is sent on another one, if that is given."""
    opened = database_of(
        Database, notified or url, Metrics(), role=WORKER_ROLE, connections=3, max_waiting=10
    )
    async with opened as database:
        listening = Listening(url, database)
        task = asyncio.create_task(listening.listener.run())
        try:
            yield listening
        finally:
            task.cancel()
            await asyncio.wait({task})


@asynccontextmanager
async def working(listening: Listening) -> AsyncIterator[None]:
    """Apply operations, and wait until the worker has found none."""
    task = asyncio.create_task(listening.worker().run())
    try:
        await listening.is_listening()
        waits = listening.wakeup.waits
        await observed(lambda: listening.wakeup.waits > waits)
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def observed(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, condition)


class Ears:
    """A connection that counts notifications."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._connection.execute(f"LISTEN {CHANNEL}")

    def heard(self, work: Work) -> bool:
        """Return whether work is reported within the time of a test."""
        found = self._connection.notifies(timeout=20.0)
        return any(each.payload == work for each in found)

    def count(self, work: Work) -> int:
        """Return how often work was reported until now."""
        # Notifications arrive in order.
        self._connection.execute("SELECT pg_notify(%s, 'end')", [CHANNEL])
        count = 0
        for each in self._connection.notifies(timeout=20.0):
            if each.payload == "end":
                break
            count += each.payload == work
        return count


@contextmanager
def ears_of(url: str) -> Iterator[Ears]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield Ears(connection)


async def test_what_is_reported_together_is_notified_once(database_url: str) -> None:
    opened = database_of(Database, database_url, Metrics(), max_waiting=10)
    async with opened as database:
        notifier = Notifier(database, Work.CHANGES, poll_interval=FOREVER)
        with ears_of(database_url) as ears:
            for _ in range(100):
                notifier.notify()
            assert await asyncio.to_thread(ears.heard, Work.CHANGES)
            for _ in range(100):
                notifier.notify()
            assert ears.count(Work.CHANGES) == 0
            await notifier.close()
            assert ears.count(Work.CHANGES) == 1


async def test_an_accepted_batch_is_notified_once(create_database: CreateDatabase) -> None:
    url = create_database()
    opened = database_of(Database, url, Metrics(), max_waiting=10)
    async with opened as database:
        notifier = Notifier(database, Work.OPERATIONS, poll_interval=0.0)
        queue = PostgresQueue(database, notifier.notify)
        with ears_of(url) as ears:
            for _ in range(3):
                await queue.append([new_operation("o", cancel("a")) for _ in range(50)])
            await notifier.close()
            assert 1 <= ears.count(Work.OPERATIONS) <= 3


def test_the_service_reports_each_kind_of_work(place: Place) -> None:
    organization = place.organization("o")
    with ears_of(place.url) as ears:
        organization.upsert("accepted", 0, 1)
        assert ears.heard(Work.OPERATIONS)
        organization.org.upsert("written", 1, 2)
        assert ears.heard(Work.CHANGES)
        webhook = hooks.Webhook(organization_id="o", url="https://example.com/")
        request = hooks.CreateWebhookRequest(webhook=webhook)
        WebhookServiceStub(place.channel).CreateWebhook(request, timeout=TIMEOUT)
        assert ears.heard(Work.CHANGES)


async def test_work_is_found_although_nobody_polls(place: Place) -> None:
    async with listening(place.url) as found, working(found):
        await asyncio.to_thread(place.organization("o").upsert, "a", 0, 1)
        await observed(place.all_applied)


async def test_work_is_found_while_the_listener_is_lost_and_afterwards(place: Place) -> None:
    name = place.sql.info.dbname
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    async with listening(place.url) as found, working(found):
        with psycopg.connect(place.url, dbname="postgres", autocommit=True) as other:
            other.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
            [(pid,)] = other.execute(LISTENING, [name, f"LISTEN {CHANNEL}"]).fetchall()
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
            await observed(lambda: not found.wakeup.listening)
            await asyncio.to_thread(place.organization("o").upsert, "a", 0, 1)
            await observed(place.all_applied)
            assert not found.wakeup.listening
            other.execute(allow.format(sql.Identifier(name), sql.SQL("true")))
        await found.is_listening()
        waits = found.wakeup.waits
        await observed(lambda: found.wakeup.waits > waits)
        await asyncio.to_thread(place.organization("o").upsert, "b", 1, 2)
        await observed(place.all_applied)


async def test_a_listener_survives_a_restart_of_the_server(own_postgres: OwnPostgres) -> None:
    server = own_postgres()
    async with listening(server.url("appointments")) as found:
        await found.is_listening()
        await asyncio.to_thread(server.stop)
        await observed(lambda: not found.wakeup.listening)
        await asyncio.to_thread(server.start)
        await found.is_listening()


async def test_a_listener_that_hears_nothing_leaves_its_loops_polling(
    create_database: CreateDatabase, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler in transaction mode: LISTEN succeeds, and nothing arrives."""
    monkeypatch.setattr(notifications, "PROOF_TIMEOUT", 0.1)
    with capture_logs() as logs:
        async with listening(create_database(), notified=place.url) as found:
            await observed(lambda: bool(logs))
            assert not found.wakeup.listening
            task = asyncio.create_task(found.worker().run())
            await asyncio.to_thread(place.organization("o").upsert, "a", 0, 1)
            await observed(place.all_applied)
            task.cancel()
            await asyncio.wait({task})
    [logged] = [each for each in logs if each["event"] == "not notified of work, polling for it"]
    assert logged["error"].startswith("no notification arrives")
