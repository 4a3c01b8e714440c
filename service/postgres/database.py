"""Connections to PostgreSQL, and what its errors mean to a caller."""

import asyncio
import select
from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, LiteralString, Self

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.errors import Diagnostic
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from service.errors import DatabaseUnavailable, LockTimeout, Overloaded, ServiceError
from service.metrics import Metrics
from service.postgres.rows import Row
from service.postgres.session import Timeouts, check_session, session_conninfo

_NOTHING_WRITTEN = "nothing was written, try again"
_NOT_KNOWN = "whether a write was stored is not known, the same request may be sent again"


class _Connection(AsyncConnection[TupleRow]):
    """A connection with one cursor, which remembers whether the server warned of a commit.

    A wait for a synchronous standby that is cancelled ends with a mere warning: the
    transaction is committed here and perhaps nowhere else.
    """

    warning: str | None = None
    # Making a cursor costs as much as running a statement.
    statements: AsyncCursor[TupleRow]


async def _prepare(connection: _Connection, timeouts: Timeouts) -> None:
    await check_session(connection, timeouts)

    def note(diagnostic: Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            connection.warning = diagnostic.message_primary

    connection.add_notice_handler(note)
    connection.statements = connection.cursor(binary=True)


class Database:
    """A pool of connections that work as the service's role.

    Connections that the server closed meanwhile are found before use, at the cost of
    a look at the socket, so that a restart of the server fails no later request.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        connections: int,
        max_waiting: int,
        timeouts: Timeouts,
        replica: bool,
        metrics: Metrics,
    ) -> None:
        self._pool = AsyncConnectionPool(
            session_conninfo(url, timeouts, replica=replica),
            connection_class=_Connection,
            configure=partial(_prepare, timeouts=timeouts),
            name=name,
            min_size=connections,
            max_size=connections,
            # Short, so that no attempt sleeps long after the server is back; the next
            # request that finds no connection starts a new attempt.
            reconnect_timeout=1.0,
            max_lifetime=30 * 60,
            kwargs={"autocommit": True},
            open=False,
        )
        self._timeouts = timeouts
        self._patience = timeouts.connection + timeouts.statement + 1.0
        self._connections = connections
        self._most_users = connections + max_waiting
        # Statements under way, those included whose caller has gone.
        self._running: set[asyncio.Task[list[Row]]] = set()
        self._lent = 0
        metrics.pool_connections.labels(name, "busy").set_function(lambda: self._lent)
        metrics.pool_connections.labels(name, "idle").set_function(
            lambda: self._pool.get_stats()["pool_available"]
        )
        metrics.pool_waiting.labels(name).set_function(lambda: len(self._running) - self._lent)

    async def __aenter__(self) -> Self:
        """Start filling the pool; does not wait for the server."""
        await self._pool.open(wait=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=self._timeouts.connection)
        await self._pool.close(timeout=5.0)

    async def fetch(
        self, statement: LiteralString, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[Row]:
        """Run one statement as a transaction of its own and return its rows.

        It runs in a task of its own: a caller that is cancelled goes at once, and the
        connection still comes back to the pool in order.

        Raises Overloaded when too many use or await a connection, LockTimeout,
        DatabaseUnavailable, and psycopg.Error if the statement itself is at fault.
        """
        if len(self._running) >= self._most_users:
            raise Overloaded(
                f"{len(self._running)} requests use or await the database; {_NOTHING_WRITTEN} later"
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Row]] = loop.create_future()
        task = loop.create_task(self._fetch(statement, parameters))
        self._running.add(task)

        def give_up() -> None:
            # The server hangs, or its statement_timeout would have ended it.
            if not answer.done():
                answer.set_exception(
                    DatabaseUnavailable(f"the database does not answer; {_NOT_KNOWN}")
                )
            task.cancel()

        timer = loop.call_later(self._patience, give_up)

        def hand_over(task: asyncio.Task[list[Row]]) -> None:
            timer.cancel()
            self._running.discard(task)
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if answer.done():  # the caller has gone, or was told to wait no longer
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(task.result())

        task.add_done_callback(hand_over)
        return await answer

    async def _fetch(
        self, statement: LiteralString, parameters: Sequence[Any] | Mapping[str, Any]
    ) -> list[Row]:
        connection = await self._take()
        self._lent += 1
        try:
            cursor = connection.statements
            await cursor.execute(statement, parameters)
            rows = await cursor.fetchall() if cursor.description else []
            if connection.warning is not None:
                raise DatabaseUnavailable(
                    f"the database is not sure of its commit ({connection.warning}); {_NOT_KNOWN}"
                )
        except psycopg.Error as error:
            meaning = await _explain(connection, error)
            if meaning is None:
                raise
            raise meaning from error
        else:
            return rows
        finally:
            self._lent -= 1
            connection.warning = None
            await self._pool.putconn(connection)

    async def _take(self) -> _Connection:
        """Take a connection that the server has not closed.

        The pool's own check is not used: it backs off for a second after the second
        dead connection, although the next one may be well.
        """
        give_up = monotonic() + self._timeouts.connection
        while True:
            try:
                connection = await self._pool.getconn(timeout=give_up - monotonic())
            except (PoolTimeout, psycopg.OperationalError) as error:
                if self._lent >= self._connections:
                    raise Overloaded(f"the database is busy; {_NOTHING_WRITTEN} later") from error
                raise DatabaseUnavailable(
                    f"the database cannot be reached; {_NOTHING_WRITTEN} later"
                ) from error
            if _still_open(connection):
                return connection
            await connection.close()
            await self._pool.putconn(connection)


async def _explain(connection: _Connection, error: psycopg.Error) -> ServiceError | None:
    """Return what a failed statement means to a caller; None if the statement is at fault.

    An answer of the server means that the transaction was rolled back; a lost
    connection leaves open whether a commit had happened. A connection that is lost, or
    whose server takes no more writes, is closed: the pool replaces it.
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
            # 57P01 to 57P05: the server ends the session, possibly right after a commit.
            if error.sqlstate and not error.sqlstate.startswith(("08", "57P")):
                return DatabaseUnavailable(f"the database is in trouble; {_NOTHING_WRITTEN} later")
            await connection.close()
            return DatabaseUnavailable(f"the connection to the database was lost; {_NOT_KNOWN}")
    return None


def _still_open(connection: _Connection) -> bool:
    """Tell whether the server has not closed an idle connection, without a round trip.

    Nothing is due on an idle connection, so bytes on its socket are the server's last
    words, and their end is the end of the connection.
    """
    try:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        while poll.poll(0):
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return True
