"""Connections to PostgreSQL, and what its errors mean to a caller."""

import select
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, LiteralString, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from service.errors import DatabaseUnavailable, LockTimeout, Overloaded, ServiceError
from service.metrics import Metrics
from service.rows import Row

# Made by the migrations; may read and append history, never rewrite it.
ROLE = "appointments_service"

_NOTHING_WRITTEN = "nothing was written, try again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Bounds on waiting, in seconds, each far below the usual deadline of a caller."""

    connection: float
    lock: float
    statement: float


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
        writable: bool,
        metrics: Metrics,
    ) -> None:
        self._pool = AsyncConnectionPool(
            _conninfo(url, timeouts, writable=writable),
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
        self._timeout = timeouts.connection
        self._most_users = connections + max_waiting
        self._users = 0
        for state, count in (("busy", self._busy), ("idle", self._idle)):
            metrics.pool_connections.labels(name, state).set_function(count)
        metrics.pool_waiting.labels(name).set_function(lambda: self._users - self._busy())

    async def __aenter__(self) -> Self:
        """Start filling the pool; does not wait for the server."""
        await self._pool.open(wait=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close(timeout=5.0)

    async def fetch(
        self, statement: LiteralString, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[Row]:
        """Run one statement as a transaction of its own and return its rows.

        Raises Overloaded, LockTimeout or DatabaseUnavailable, and psycopg.Error if the
        statement itself is at fault; it was rolled back then.
        """
        async with self._connection() as connection:
            try:
                cursor = await connection.execute(statement, parameters, binary=True)
                return await cursor.fetchall()
            except psycopg.Error as error:
                meaning = await _explain(connection, error)
                if meaning is None:
                    raise
                raise meaning from error

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """Lend a connection in autocommit mode.

        Raises Overloaded when too many use or await one, and DatabaseUnavailable when
        none is to be had in time; nothing was sent to the server then.
        """
        if self._users >= self._most_users:
            raise Overloaded(
                f"{self._users} requests use or await the database; {_NOTHING_WRITTEN} later"
            )
        self._users += 1
        try:
            connection = await self._take()
            try:
                yield connection
            finally:
                await self._pool.putconn(connection)
        finally:
            self._users -= 1

    async def _take(self) -> AsyncConnection[TupleRow]:
        """Take a connection that the server has not closed.

        The pool's own check is not used: it backs off for a second after the second
        dead connection, although the next one may be well.
        """
        give_up = monotonic() + self._timeout
        while True:
            try:
                connection = await self._pool.getconn(timeout=give_up - monotonic())
            except (PoolTimeout, psycopg.OperationalError) as error:
                raise DatabaseUnavailable(
                    f"the database cannot be reached; {_NOTHING_WRITTEN} later"
                ) from error
            if _still_open(connection):
                return connection
            await connection.close()
            await self._pool.putconn(connection)

    def _busy(self) -> float:
        stats = self._pool.get_stats()
        return stats["pool_size"] - stats["pool_available"]

    def _idle(self) -> float:
        return self._pool.get_stats()["pool_available"]


async def _explain(
    connection: AsyncConnection[TupleRow], error: psycopg.Error
) -> ServiceError | None:
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
            return DatabaseUnavailable(
                "the connection to the database was lost; whether a write was stored is not"
                " known, the same request may be sent again"
            )
    return None


def _still_open(connection: AsyncConnection[TupleRow]) -> bool:
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


def _conninfo(url: str, timeouts: Timeouts, *, writable: bool) -> str:
    """Complete a connection string with what every connection of ours relies on.

    READ COMMITTED: apply_writes is correct under no other level. synchronous_commit: a
    write answered with success is durable. Options of the caller's own come first, so
    that these win.
    """
    options = {
        "role": ROLE,
        "timezone": "UTC",
        "default_transaction_isolation": r"read\ committed",
        "synchronous_commit": "on",
        "lock_timeout": f"{timeouts.lock * 1000:.0f}",
        "statement_timeout": f"{timeouts.statement * 1000:.0f}",
        "idle_in_transaction_session_timeout": "10000",
    }
    ours = " ".join(f"-c {name}={value}" for name, value in options.items())
    given = conninfo_to_dict(url)
    return make_conninfo(
        url,
        options=f"{given.get('options', '')} {ours}".strip(),
        application_name=given.get("application_name", "appointments"),
        connect_timeout=given.get("connect_timeout", 5),
        target_session_attrs="read-write" if writable else "any",
        # A server that is gone without a word is noticed in about ten seconds.
        keepalives_idle=given.get("keepalives_idle", 5),
        keepalives_interval=given.get("keepalives_interval", 2),
        keepalives_count=given.get("keepalives_count", 3),
        tcp_user_timeout=given.get("tcp_user_timeout", 10_000),
    )
