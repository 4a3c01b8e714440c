"""A pool of connections to PostgreSQL, and the translation of its errors."""

import asyncio
import select
from collections.abc import Mapping, Sequence
from functools import lru_cache
from time import monotonic
from typing import Any, LiteralString, Self

import psycopg
from psycopg import AsyncCursor
from psycopg.errors import Diagnostic
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from runtime.tracing import current_span
from service.errors import DatabaseUnavailable, LockTimeout, Overloaded, ServiceError
from service.metrics import Metrics
from service.postgres.epochs import FIRST, current_epoch
from service.postgres.rows import Row
from service.postgres.session import (
    DatabaseUnfit,
    Session,
    Timeouts,
    plain_conninfo,
    session_settings,
)

_NOTHING_WRITTEN = "nothing was written, try again"

# A statement for one organization sets it before anything else runs, for its transaction only, so
# that it costs no round trip and stays on no connection. What follows depends on the first row, so
# PostgreSQL cannot run it before. OFFSET 0 keeps the planner from mixing the two.
_FOR_ONE: LiteralString = """
    SELECT found.*
    FROM (
        SELECT set_config('appointments.organization', {organization}, true) AS id
    ) AS organization
    CROSS JOIN LATERAL (
        SELECT * FROM ({statement}) AS statement WHERE organization.id IS NOT NULL OFFSET 0
    ) AS found
"""

# What PostgreSQL says if a migration replaces a function between the plan of a statement and its
# execution. Nothing was done then, and the next attempt makes another plan.
_REPLACED = "cache lookup failed for function"

# Seconds for the pool to give a connection to a statement whose turn came late.
_LEAST_WAIT = 0.01

# A connection goes to the pool after this many statements, also if others wait.
_MOST_TURNS = 100

_NOT_KNOWN = "whether a write was stored is not known, the same request may be sent again"


class _Connection(Session):
    """A connection with one reusable cursor and the last warning of the server.

    If the wait for a synchronous standby is cancelled, a commit succeeds with a warning only:
    the transaction is durable on the primary, and possibly on no standby.
    """

    warning: str | None = None
    # The number of statements so far.
    turns = 0
    # Reused, because creating a cursor costs as much as executing a statement.
    statements: AsyncCursor[TupleRow]
    raw_statements: AsyncCursor[TupleRow]

    async def cancel_safe(self, *, timeout: float = 0.0) -> None:  # noqa: ARG002, ASYNC109
        """Close the connection instead of cancelling its statement, which psycopg would do.

        A statement that outlasts its timeout may be a commit that waits for a synchronous standby.
        Cancelled, it would become visible without being on any standby: callers would see, and
        base answers on, what a failover takes away.
        """
        await self.close()


class Database:
    """A pool of connections that use a role of the service.

    What a statement can reach is decided by PostgreSQL, whatever it says: see `fetch`.
    `distributed` is whether the database is distributed by organization (docs/scaling.md). At most
    `max_waiting` statements wait for a connection; who shares a statement waits by the same limit.

    Before a connection is used, its socket is checked for a close by the server, so that a
    restart of the server fails no later request.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        connections: int,
        max_waiting: int,
        timeouts: Timeouts,
        role: str,
        replica: bool,
        metrics: Metrics,
        epoch: str = FIRST,
        distributed: bool = False,
    ) -> None:
        self._pool = AsyncConnectionPool(
            plain_conninfo(url, replica=replica),
            connection_class=_Connection,
            configure=self._prepare,
            name=name,
            min_size=connections,
            max_size=connections,
            # Short, because the delay between attempts grows: reconnecting must not wait long
            # after the server is back. The next request without a connection starts again.
            reconnect_timeout=1.0,
            max_lifetime=30 * 60,
            kwargs={"autocommit": True, "settings": session_settings(timeouts, role=role)},
            open=False,
        )
        self._timeouts = timeouts
        self._epoch = epoch
        self.distributed = distributed
        self._total_timeout = timeouts.connection + timeouts.statement + 1.0
        self._connections = connections
        self.max_waiting = max_waiting
        # Statements that run or wait for a connection, also for callers that have gone.
        self._running: set[asyncio.Task[list[Row]]] = set()
        self._in_use = 0
        # A statement runs when it has a turn, of which there is one for each connection. `_waiting`
        # have none yet. Connections that are handed over to them are not in the pool meanwhile.
        self._turns = asyncio.Semaphore(connections)
        self._waiting = 0
        # Statements whose turn it is, and that wait for the pool to have a connection.
        self._waiting_for_pool = 0
        self._handed_over: list[_Connection] = []
        metrics.pool_connections.labels(name, "busy").set_function(lambda: self._in_use)
        metrics.pool_connections.labels(name, "idle").set_function(
            lambda: self._pool.get_stats()["pool_available"]
        )
        metrics.pool_waiting.labels(name).set_function(lambda: len(self._running) - self._in_use)

    async def __aenter__(self) -> Self:
        """Start to connect in the background, without waiting for the server."""
        await self._pool.open(wait=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=self._timeouts.connection)
        while self._handed_over:
            await self._pool.putconn(self._handed_over.pop())
        await self._pool.close(timeout=5.0)

    @property
    def epoch(self) -> str:
        """The epoch of the database, as read by the latest connection (service/postgres/epochs.py).

        Before the first one, it is the one that was given.
        """
        return self._epoch

    async def fetch(
        self,
        organization_id: str,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        """Run one query for an organization in a transaction of its own and return its rows.

        Its unqualified tables have the rows of this organization only, and functions refuse
        another one: a statement that forgets or confuses the organization finds nothing and
        changes nothing. Raises what `fetch_across` raises.

        A distributed database gets the statement as it is, because only a plain call of a function
        runs on the organization's node. There the statement itself has to name the organization.
        """
        if self.distributed:
            return await self.fetch_across(statement, parameters, raw=raw)
        if isinstance(parameters, Mapping):
            wrapped = _for_one(statement, "%(organization_of_statement)s::text")
            parameters = {**parameters, "organization_of_statement": organization_id}
        else:
            wrapped = _for_one(statement, "%s::text")
            parameters = (organization_id, *parameters)
        return await self.fetch_across(wrapped, parameters, raw=raw)

    async def fetch_across(
        self,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        """Run one statement for several organizations, or none, and return its rows.

        It runs in a transaction of its own, and sees no rows in unqualified tables. For callers
        it can only call the functions for several organizations. In the background it names the
        tables of all organizations: `public.appointments`.

        `raw` rows have texts and times as PostgreSQL sends them: texts as bytes of UTF-8, times as
        microseconds since 2000. That takes a fraction of the time.

        The statement runs in a task of its own. A caller that is cancelled returns at once,
        while the statement completes and its connection returns to the pool.

        Raises Overloaded if too many statements run or wait for a connection, LockTimeout,
        DatabaseUnavailable, and psycopg.Error if the statement itself is wrong.
        """
        span = current_span.get()
        if span is None:
            return await self._run(statement, parameters, raw=raw)
        with span.child("SQL", kind="client", database="postgresql", statement=statement):
            return await self._run(statement, parameters, raw=raw)

    async def _run(
        self,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any],
        *,
        raw: bool,
    ) -> list[Row]:
        if len(self._running) >= self._connections + self.max_waiting:
            raise Overloaded(
                f"{len(self._running)} requests use or await the database; {_NOTHING_WRITTEN} later"
            )
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[Row]] = loop.create_future()
        task = loop.create_task(self._fetch(statement, parameters, raw=raw))
        self._running.add(task)

        def time_out() -> None:
            # The server hangs; otherwise its statement_timeout would have ended the statement.
            if not result.done():
                result.set_exception(
                    DatabaseUnavailable(f"the database does not respond; {_NOT_KNOWN}")
                )
            task.cancel()

        timer = loop.call_later(self._total_timeout, time_out)

        def set_result(task: asyncio.Task[list[Row]]) -> None:
            timer.cancel()
            self._running.discard(task)
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if result.done():  # cancelled or timed out
                return
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(task.result())

        task.add_done_callback(set_result)
        return await result

    async def _prepare(self, connection: _Connection) -> None:
        await connection.check()
        if connection.distributed != self.distributed:
            raise DatabaseUnfit(
                f"the database is {'' if connection.distributed else 'not '}distributed, unlike"
                " when this program started: start it again"
            )
        self._epoch = await current_epoch(connection)

        def store_warning(diagnostic: Diagnostic) -> None:
            if diagnostic.severity_nonlocalized == "WARNING":
                connection.warning = diagnostic.message_primary

        connection.add_notice_handler(store_warning)
        connection.statements = connection.cursor(binary=True)
        connection.raw_statements = connection.cursor(binary=True)
        adapters = connection.raw_statements.adapters
        adapters.register_loader("text", ByteaBinaryLoader)
        adapters.register_loader("timestamptz", Int8BinaryLoader)

    async def _fetch(
        self,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any],
        *,
        raw: bool,
    ) -> list[Row]:
        connection = await self._get_connection()
        self._in_use += 1
        try:
            cursor = connection.raw_statements if raw else connection.statements
            try:
                await connection.execute_with_settings(cursor, statement, parameters)
            except psycopg.errors.InternalError_ as error:
                if not str(error).startswith(_REPLACED):
                    raise
                await connection.execute_with_settings(cursor, statement, parameters)
            # None without a result. The description would be made for every statement.
            rows = [] if cursor.rownumber is None else await cursor.fetchall()
            if connection.warning is not None:
                raise DatabaseUnavailable(
                    f"the commit is not confirmed ({connection.warning}); {_NOT_KNOWN}"
                )
        except psycopg.Error as error:
            # Detail and context can quote the row or the parameters, which belong in no log.
            if error.sqlstate is not None:
                error.args = (error.diag.message_primary,)
            translated = await _translate(connection, error)
            if translated is None:
                raise
            raise translated from error
        else:
            return rows
        finally:
            self._in_use -= 1
            connection.warning = None
            await self._return_connection(connection)

    async def _get_connection(self) -> _Connection:
        """Return a connection that the server has not closed, when it is the statement's turn."""
        deadline = monotonic() + self._timeouts.connection
        await self._wait_for_turn()
        try:
            while True:
                if self._handed_over:
                    connection = self._handed_over.pop()
                else:
                    connection = await self._connection_of_pool(deadline)
                # The pool's own check is not used: it backs off for a second after the second
                # closed connection, although the next one may be open.
                if _still_open(connection):
                    return connection
                await connection.close()
                await self._pool.putconn(connection)
        except BaseException:
            self._turns.release()
            raise

    async def _wait_for_turn(self) -> None:
        """Wait while there are as many statements as connections.

        Waiting in the pool would cost as much as a third of a short statement.
        """
        if not self._turns.locked():
            await self._turns.acquire()  # returns at once
            return
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeouts.connection):
                await self._turns.acquire()
        except TimeoutError as error:
            raise self._without_connection() from error
        finally:
            self._waiting -= 1

    async def _connection_of_pool(self, deadline: float) -> _Connection:
        self._waiting_for_pool += 1
        try:
            return await self._pool.getconn(timeout=max(deadline - monotonic(), _LEAST_WAIT))
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise self._without_connection() from error
        finally:
            self._waiting_for_pool -= 1

    def _without_connection(self) -> ServiceError:
        if self._in_use >= self._connections:
            return Overloaded(f"the database is busy; {_NOTHING_WRITTEN} later")
        return DatabaseUnavailable(f"the database cannot be reached; {_NOTHING_WRITTEN} later")

    async def _return_connection(self, connection: _Connection) -> None:
        """Give a connection to the next statement, or to the pool, which replaces old ones.

        The pool may lack connections, for example if the server refuses some. Statements that wait
        for it began before those that wait for their turn.
        """
        connection.turns += 1
        try:
            if self._waiting and not self._waiting_for_pool and connection.turns % _MOST_TURNS:
                self._handed_over.append(connection)
            else:
                await self._pool.putconn(connection)
        finally:
            self._turns.release()


@lru_cache(maxsize=512)
def _for_one(statement: LiteralString, organization: LiteralString) -> LiteralString:
    return _FOR_ONE.format(statement=statement, organization=organization)


async def _translate(connection: _Connection, error: psycopg.Error) -> ServiceError | None:
    """Return the ServiceError for a failed statement; None if the statement itself is wrong.

    An error that the server reports means that the transaction was rolled back. After a lost
    connection it is not known whether a commit succeeded. A connection that is lost, or whose
    server has become read-only, is closed, so that the pool replaces it.
    """
    match error:
        case psycopg.errors.LockNotAvailable():
            return LockTimeout(f"the organization is locked for too long; {_NOTHING_WRITTEN} later")
        case psycopg.errors.QueryCanceled():
            return DatabaseUnavailable(f"the database took too long; {_NOTHING_WRITTEN} later")
        case psycopg.errors.ReadOnlySqlTransaction():
            await connection.close()
            return DatabaseUnavailable(f"the database is read-only now; {_NOTHING_WRITTEN} later")
        case psycopg.OperationalError() | psycopg.InterfaceError():
            # 57P01 to 57P05: the server ended the session, possibly right after a commit.
            if error.sqlstate and not error.sqlstate.startswith(("08", "57P")):
                return DatabaseUnavailable(f"the database is in trouble; {_NOTHING_WRITTEN} later")
            await connection.close()
            return DatabaseUnavailable(f"the connection to the database was lost; {_NOT_KNOWN}")
    return None


def _still_open(connection: _Connection) -> bool:
    """Return False if the server has closed an idle connection. Makes no round trip.

    A server that ends a session sends an error, then closes the connection. Reading what has
    arrived on the socket therefore fails if the connection is closed.
    """
    try:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        while poll.poll(0):
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return True
