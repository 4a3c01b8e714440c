"""Connections with the settings of the service, independent of presets of database and role.

The settings are sent as startup options, which override `ALTER DATABASE ... SET` and
`ALTER ROLE ... SET`. A pooler refuses or drops them (see Session). Every new connection is checked.
"""

import asyncio
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, LiteralString, Self

import psycopg
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline, sql
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, tuple_row

# The roles of statements, created by the migrations. Both write appointments and history only
# through functions. Statements for callers see one organization at a time.
CALLER_ROLE = "appointments_caller"
# The work of all organizations in the background. May read all of them.
WORKER_ROLE = "appointments_service"

# Other encodings cannot store every character.
ENCODING = "UTF8"

# Seconds for the check of a new connection.
_CHECK_TIMEOUT = 5.0

# Environment variables that libpq sends after the options, so that they override them.
_LIBPQ_VARIABLES = {"TimeZone": "PGTZ", "DateStyle": "PGDATESTYLE"}

# Of no meaning to PostgreSQL. Its value is different for every connection, so that a server that
# has it got the startup options of this connection.
_MARK = "appointments.connection"

# The organization of a statement, see `Database.fetch`.
_ORGANIZATION = "appointments.organization"

# How psycopg names the statements that it prepares.
_PREPARED = "_pg3_"

# The function that exists only where the migrations have made the tables distributed.
_DISTRIBUTED: LiteralString = "public.purge_organization(text)"

# Returns whether they have.
IS_DISTRIBUTED: LiteralString = f"SELECT to_regprocedure('{_DISTRIBUTED}') IS NOT NULL"

# Other settings in a database that is distributed by organization (docs/scaling.md). A plan has to
# know the organization to find its node. There the tables themselves are used, with no views.
DISTRIBUTED_SETTINGS = {"plan_cache_mode": "auto", "search_path": "public"}

# Settings that a transaction cannot have of its own. A pooler keeps the connections of the server,
# idle ones too, and no transaction of a single statement is idle.
_IDLE = {"idle_in_transaction_session_timeout", "idle_session_timeout"}
_OF_SESSIONS = {"default_transaction_isolation", *_IDLE}

_SET: LiteralString = """
    SELECT name, set_config(name, value, false)
    FROM unnest(%s::text[], %s::text[]) AS setting (name, value)
"""

_SET_LOCAL: LiteralString = """
    SELECT set_config(name, value, true)
    FROM unnest(%s::text[], %s::text[]) AS setting (name, value)
"""


class DatabaseUnfit(Exception):
    """The database or the connection to it is unsuitable. The message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Timeouts in seconds. Each is to be far below the usual deadline of a caller."""

    connection: float
    lock: float
    statement: float


def session_settings(timeouts: Timeouts, *, role: str | None) -> dict[str, str]:
    """Return the settings of every connection of the service, except the encoding.

    The role is the last of them.
    """
    settings = {
        # An unqualified table is a view of one organization's rows in the schema `own`.
        "search_path": "own, public",
        # apply_writes is correct under no other level.
        "default_transaction_isolation": "read committed",
        # A write that succeeded is durable.
        "synchronous_commit": "on",
        # The server reports a commit that no standby has confirmed as a warning.
        "client_min_messages": "notice",
        # The formats of values.
        "TimeZone": "UTC",
        "DateStyle": "ISO, MDY",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "standard_conforming_strings": "on",
        "array_nulls": "on",
        "row_security": "on",
        # Planning costs more than executing, and no statement needs a sequential scan.
        # With these settings the plans do not depend on statistics.
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        # Before PostgreSQL 18, the cost of a plan with a disabled node would trigger JIT.
        "jit": "off",
        "lock_timeout": f"{math.ceil(timeouts.lock * 1000)}",
        "statement_timeout": f"{math.ceil(timeouts.statement * 1000)}",
        "idle_in_transaction_session_timeout": "10000",
        # The pool keeps idle connections.
        "idle_session_timeout": "0",
    }
    return settings | ({"role": role} if role else {})


def with_settings(conninfo: str, settings: Mapping[str, str]) -> str:
    """Add settings to the `options` of a connection string, which they follow and so override."""
    ours = " ".join(
        f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items()
    )
    return make_conninfo(conninfo, options=f"{_options(conninfo)} {ours}".strip())


def plain_conninfo(url: str, *, replica: bool) -> str:
    """Add what every connection of the service has, except the settings, to a connection string."""
    given = conninfo_to_dict(url)
    return make_conninfo(
        url,
        client_encoding=ENCODING,
        application_name=given.get("application_name", "appointments"),
        connect_timeout=given.get("connect_timeout", 5),
        # Reads also need the primary, since a standby may lag.
        target_session_attrs="any" if replica else "read-write",
        # All addresses of a replica's name are equivalent.
        load_balance_hosts=given.get("load_balance_hosts", "random" if replica else None),
        # A server that disappears silently is detected within about ten seconds.
        keepalives_idle=given.get("keepalives_idle", 5),
        keepalives_interval=given.get("keepalives_interval", 2),
        keepalives_count=given.get("keepalives_count", 3),
        tcp_user_timeout=given.get("tcp_user_timeout", 10_000),
    )


class _Pipeline(AsyncPipeline):
    """A pipeline that ends with Sync.

    psycopg's own may send a Flush after it. If PgBouncer has given the connection of the server to
    others by then, it takes another one for the Flush, to which there is no answer: it keeps that
    for this client until its next statement.
    """

    def _exit_gen(self) -> PQGen[None]:
        try:
            self._enqueue_sync()
            yield from self._communicate_gen()
        finally:
            yield from self._fetch_gen(flush=False)


class Session(AsyncConnection[TupleRow]):
    """A connection with settings, to the server itself or through a pooler.

    The server itself gets the settings as startup options, and keeps them. A pooler refuses or
    drops the options, and may run each transaction on another of its connections to the server.
    There, `execute_with_settings` sets them for the transaction of a statement, in the same round
    trip. They end with it, so no other client of the pooler gets them. Prepared statements also
    belong to a connection of the server, so nothing is prepared there, unless the pooler keeps
    those of its clients apart. Connecting and `check` find out all of this.
    """

    # Whether a pooler is in between.
    pooled = False
    # Whether the database is distributed by organization. `check` finds it out.
    distributed = False
    settings: Mapping[str, str]
    mark: str

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:  # noqa: ANN401
        """Connect. The keyword `settings` has those of the session, the role last."""
        settings: Mapping[str, str] = kwargs.pop("settings", {})
        mark = secrets.token_hex(8)
        options = _options(conninfo)
        try:
            session = await super().connect(
                with_settings(conninfo, {**settings, _MARK: mark}), **kwargs
            )
        except psycopg.OperationalError as error:
            if not refuses_options(error):
                raise
            # Even if there are none, which keeps libpq from sending those of PGOPTIONS.
            session = await super().connect(make_conninfo(conninfo, options=options), **kwargs)
            session.pooled = True
        session.settings = settings
        session.mark = mark
        return session

    @cached_property
    def _setter(self) -> AsyncCursor[TupleRow]:
        return self.cursor(row_factory=tuple_row)

    @cached_property
    def _local(self) -> tuple[list[str], list[str]]:
        """The names and values of the settings of a transaction.

        Another client of the pooler may have left any of them, and that of the organization.
        """
        local = {_ORGANIZATION: ""}
        local |= {name: value for name, value in self.settings.items() if name not in _OF_SESSIONS}
        return list(local), list(local.values())

    async def execute_with_settings(
        self,
        cursor: AsyncCursor[TupleRow],
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
    ) -> None:
        """Execute a statement with the settings, in a transaction of its own."""
        if not self.pooled:
            await cursor.execute(statement, parameters)
            return
        self._pipeline = _Pipeline(self)
        async with self.pipeline():
            await self._setter.execute(_SET_LOCAL, self._local)
            await cursor.execute(statement, parameters)

    async def fetch(
        self, statement: LiteralString, parameters: Sequence[Any] = ()
    ) -> list[TupleRow]:
        """Return the rows of a statement that runs with the settings."""
        async with self.cursor(row_factory=tuple_row) as cursor:
            await self.execute_with_settings(cursor, statement, parameters)
            return await cursor.fetchall()

    async def check(self) -> None:
        """Raise DatabaseUnfit, naming every setting that is wrong.

        Takes one round trip, or two through a pooler or to a distributed database. Closes a
        connection that is unsuitable or does not respond.
        """
        try:
            check_encoding(self)
            async with asyncio.timeout(_CHECK_TIMEOUT):
                found = await self._found()
                if not self.pooled and found[_MARK] != self.mark:
                    self.pooled = True
                    found = await self._found()
                self.distributed = found[_DISTRIBUTED] == "true"
                if self.distributed:
                    found |= await self._set_distributed()
                self._compare(found)
                if self.pooled and not await self._may_prepare():
                    self.prepare_threshold = None
        except BaseException:
            await self.close()
            raise

    async def _set_distributed(self) -> dict[str, str]:
        """Set what is different in a distributed database, and return it.

        Through a pooler, a statement shares its transaction with its settings. A function that is
        called in such a transaction runs on the coordinator, and takes the organization's lock
        there, while others hold it on the organization's node.
        """
        if self.pooled:
            raise DatabaseUnfit(
                "a pooler is between this program and a database that is distributed by"
                " organization: give the DATABASE_URL of the server itself"
            )
        self.settings = {**self.settings, **DISTRIBUTED_SETTINGS}
        names, values = list(DISTRIBUTED_SETTINGS), list(DISTRIBUTED_SETTINGS.values())
        return dict(await self.fetch(_SET, (names, values)))

    async def _may_prepare(self) -> bool:
        """Return whether the pooler keeps the prepared statements of its clients apart.

        Then it gives them names of its own. Otherwise the name is found as it was sent, and another
        client's statement may have it on the next connection of the server.
        """
        try:
            async with self.transaction(), self.cursor(row_factory=tuple_row) as cursor:
                await cursor.execute(
                    "SELECT name FROM pg_prepared_statements WHERE position(%s IN statement) > 0"
                    f" /* {self.mark} */".encode(),
                    (self.mark,),
                    prepare=True,
                )
                [(name,)] = await cursor.fetchall()
                if not name.startswith(_PREPARED):
                    return True
                await cursor.execute(sql.SQL("DEALLOCATE {}").format(sql.Identifier(name)))
        except psycopg.errors.DuplicatePreparedStatement:
            pass
        return False

    async def require_server(self, why: str) -> None:
        """Raise DatabaseUnfit, with the reason, if a pooler is in between."""
        if not self.pooled:
            [(mark,)] = await self.fetch("SELECT current_setting(%s, true)", (_MARK,))
            self.pooled = mark != self.mark
        if self.pooled:
            raise pooler_between(why)

    async def _found(self) -> dict[str, str]:
        """Return the settings that a statement finds, with `user` and the mark."""
        return dict(
            await self.fetch(
                "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"
                " UNION ALL SELECT 'user', session_user::text"
                " UNION ALL SELECT 'role', current_user"
                " UNION ALL SELECT %s, current_setting(%s, true)"
                " UNION ALL SELECT %s, (to_regprocedure(%s) IS NOT NULL)::text",
                (
                    [*self.settings, "transaction_timeout"],
                    _MARK,
                    _MARK,
                    _DISTRIBUTED,
                    _DISTRIBUTED,
                ),
            )
        )

    def _compare(self, found: Mapping[str, str]) -> None:
        encoding = self.info.parameter_status("client_encoding")
        if encoding != ENCODING:
            raise DatabaseUnfit(f"the connection has client_encoding={encoding}, not {ENCODING}")
        wanted = {
            name: value
            for name, value in self.settings.items()
            if not (self.pooled and name in _IDLE)
        }
        # Not sent, since it does not exist before PostgreSQL 17. A value above statement_timeout
        # ends no statement of the service and is accepted.
        if 0 < int(found.get("transaction_timeout", 0)) <= int(wanted["statement_timeout"]):
            wanted["transaction_timeout"] = "0"
        lacking = [name for name, value in wanted.items() if _plain(found[name]) != _plain(value)]
        if not lacking:
            return
        has = ", ".join(f"{name}={found[name]}" for name in lacking)
        overridden = [
            variable
            for name, variable in _LIBPQ_VARIABLES.items()
            if name in lacking and os.environ.get(variable)
        ]
        if overridden:
            raise DatabaseUnfit(f"the connection has {has}: unset {' and '.join(overridden)}")
        user = sql.Identifier(found["user"]).as_string()
        # In quotes, the schemas of the search path would be the name of one schema.
        statements = " ".join(
            f"ALTER ROLE {user} SET {name} = "
            + (wanted[name] if name == "search_path" else f"'{wanted[name]}'")
            + ";"
            for name in lacking
        )
        raise DatabaseUnfit(
            f"the connection has {has}: set for its user what cannot be sent: {statements}"
        )


def pooler_between(why: str) -> DatabaseUnfit:
    return DatabaseUnfit(
        f"a pooler is between this program and the server: {why}, so give the DATABASE_URL of the"
        " server itself"
    )


def refuses_options(error: psycopg.OperationalError) -> bool:
    """Return whether PgBouncer, Neon or RDS Proxy refused startup options, each in its words."""
    return "options" in str(error)


def check_encoding(connection: AsyncConnection[Any]) -> None:
    """Raise DatabaseUnfit if the database's encoding is not UTF8."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != ENCODING:
        raise DatabaseUnfit(
            f"the encoding of the database {connection.info.dbname} is {encoding}, not {ENCODING}:"
            f" use one created by CREATE DATABASE ... ENCODING '{ENCODING}' TEMPLATE template0"
        )


def _options(conninfo: str) -> str:
    return str(conninfo_to_dict(conninfo).get("options", ""))


def _plain(value: str) -> str:
    """Normalize a setting for comparison: without spaces, in lower case."""
    return "".join(value.split()).casefold()
