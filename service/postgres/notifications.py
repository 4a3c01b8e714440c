"""Notifications of work, so that workers poll when there is some (LISTEN and NOTIFY).

A notification says only that polling is worthwhile. It may be lost: with the process that was
about to send it, or with the connection of a listener. So it is sent after the commit, in a
transaction of its own, and whoever waits for one polls from time to time all the same.
"""

import asyncio
import contextvars
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from enum import StrEnum
from typing import Any, LiteralString, NoReturn

import psycopg
import structlog
from psycopg import AsyncConnection

from service.errors import ServiceError
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.schema import connect
from service.postgres.session import DatabaseUnfit, Timeouts

CHANNEL: LiteralString = "appointments_work"

_NOTIFY = "SELECT pg_notify(%s, %s)"

# Seconds between two polls without a notification. Work whose notification was lost waits as long,
# and an idle worker polls as often: a poll takes about a millisecond of CPU time.
MAX_SLEEP = 2.0

# Seconds before a lost connection is replaced.
RETRY_DELAY = 1.0
# A listener notifies itself first, on another connection. Seconds for that, and before the next
# attempt if it hears nothing, as behind a pooler that gives a connection to one transaction.
PROOF_TIMEOUT = 2.0
UNHEARD_DELAY = 60.0
# A timer may fire early by its resolution, and work that is due then is not found yet.
TIMER_MARGIN = 0.005

log = structlog.get_logger()


class Work(StrEnum):
    """What there is to do, as the payload of a notification."""

    OPERATIONS = "operations"  # queued in PostgreSQL
    CHANGES = "changes"  # of appointments, for webhooks and events, and new holds; also of webhooks


class Notifier:
    """Notifies workers of one kind of work, at most twice in their poll interval (seconds).

    What is reported meanwhile shares the next notification. Workers poll at most once in the poll
    interval, so they find the work no later than if they polled all the time.
    """

    def __init__(self, database: Database, work: Work, *, poll_interval: float) -> None:
        self._database = database
        self._work = work
        self._interval = poll_interval / 2
        self._task: asyncio.Task[None] | None = None
        self._pending = False
        self._closing = asyncio.Event()

    def notify(self) -> None:
        """Report work that is committed. Returns at once."""
        self._pending = True
        if self._task is None:
            # Not in the context of the first caller, since it works for all of them.
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())

    async def close(self) -> None:
        """Send what is pending now."""
        self._closing.set()
        while self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while self._pending:
                self._pending = False
                try:
                    await self._database.fetch_across(_NOTIFY, (CHANNEL, self._work))
                except ServiceError:
                    self._pending = not self._closing.is_set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._closing.wait()
        finally:
            self._task = None


class Wakeup:
    """Wakes a loop that has found no work.

    Unless `listening`, nobody is notified, so the loop does not wait: it polls at its own interval.
    """

    def __init__(self) -> None:
        self.listening = False
        self._woken = asyncio.Event()

    async def wait(self, at_most: float = MAX_SLEEP) -> None:
        """Return when there may be work, or after `at_most` seconds."""
        if self.listening:
            with suppress(TimeoutError):
                async with asyncio.timeout(at_most):
                    await self._woken.wait()
        # What is reported from now on is found by the poll that follows, or ends the next wait.
        self._woken.clear()

    def wake(self) -> None:
        """End this wait, or the next one."""
        self._woken.set()

    def wake_in(self, seconds: float) -> None:
        """Wake when work becomes due."""
        asyncio.get_running_loop().call_later(seconds + TIMER_MARGIN, self.wake)


class Listener:
    """Listens on a connection of its own, and wakes loops.

    A connection that is lost is replaced. Until the new one has proved that it hears, all loops
    poll; then they poll once more, for what was notified meanwhile.
    """

    def __init__(self, url: str, database: Database, timeouts: Timeouts, metrics: Metrics) -> None:
        self._url = url
        self._timeouts = timeouts
        self._database = database
        self._gauge = metrics.listening
        self._wakeups: defaultdict[str, list[Wakeup]] = defaultdict(list)
        self._failing = False

    def wakeup(self, work: Work) -> Wakeup:
        """Return a new wakeup for a kind of work."""
        wakeup = Wakeup()
        self._wakeups[work].append(wakeup)
        return wakeup

    async def run(self) -> NoReturn:
        """Listen until cancelled."""
        while True:
            delay = RETRY_DELAY
            try:
                await self._listen()
                problem = "the connection was closed"
            except TimeoutError:
                problem = "no notification arrives, as behind a pooler in transaction mode"
                delay = UNHEARD_DELAY
            except DatabaseUnfit as error:
                problem = str(error)
                delay = UNHEARD_DELAY
            except (psycopg.Error, ServiceError) as error:
                problem = str(error).strip()
            finally:
                self._set_listening(False)
            if not self._failing:
                log.warning("not notified of work, polling for it", error=problem)
            self._failing = True
            await asyncio.sleep(delay)

    async def _listen(self) -> None:
        """Listen until the connection is lost. Raises TimeoutError if nothing is heard."""
        proof = secrets.token_hex(8)
        async with await connect(self._url, self._timeouts, replica=False, role=None) as connection:
            await connection.require_server("notifications belong to a session")
            await connection.execute(f"LISTEN {CHANNEL}")
            await self._database.fetch_across(_NOTIFY, (CHANNEL, proof))
            async with (
                asyncio.timeout(PROOF_TIMEOUT) as waiting,
                aclosing(_payloads(connection)) as payloads,
            ):
                async for payload in payloads:
                    if payload == proof:
                        waiting.reschedule(None)
                        self._set_listening(True)
                    for wakeup in self._wakeups.get(payload, ()):
                        wakeup.wake()

    def _set_listening(self, listening: bool) -> None:
        self._gauge.set(listening)
        if listening and self._failing:
            log.info("notified of work again")
            self._failing = False
        for wakeup in (each for several in self._wakeups.values() for each in several):
            wakeup.listening = listening
            wakeup.wake()


async def _payloads(connection: AsyncConnection[Any]) -> AsyncGenerator[str, None]:
    """Yield the payloads of notifications until the connection is lost, which is an error.

    The connection's own `notifies` would wake the process ten times a second.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    descriptor = connection.fileno()
    loop.add_reader(descriptor, readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            connection.pgconn.consume_input()
            while notification := connection.pgconn.notifies():
                yield notification.extra.decode()
    finally:
        loop.remove_reader(descriptor)
