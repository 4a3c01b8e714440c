"""What every session with PostgreSQL is like, whatever a database or role presets.

The settings are sent as startup options, which win over `ALTER DATABASE ... SET` and
`ALTER ROLE ... SET`. A pooler may drop them without a word, so each new connection is
checked to have them.
"""

import asyncio
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row

# Made by the migrations; reads appointments and history, and writes them by functions alone.
ROLE = "appointments_service"

# What is stored must come back as it was sent.
ENCODING = "UTF8"

# Seconds that a new connection has to say how it is set.
_CHECKED_WITHIN = 5.0

# Variables that libpq sends after the options, so that they win over them.
_LIBPQ_VARIABLES = {"TimeZone": "PGTZ", "DateStyle": "PGDATESTYLE"}


class DatabaseUnfit(Exception):
    """The database, or the way to it, is not as the service needs it; says what to mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Bounds on waiting, in seconds, each far below the usual deadline of a caller."""

    connection: float
    lock: float
    statement: float


def session_settings(timeouts: Timeouts) -> dict[str, str]:
    """Return what every connection of the service relies on, but for its role and encoding."""
    return {
        # The tables are in `public`, whatever is first elsewhere.
        "search_path": "public",
        # apply_writes is correct under no other level.
        "default_transaction_isolation": "read committed",
        # A write answered with success is durable.
        "synchronous_commit": "on",
        # A commit that no standby has confirmed is told by a warning.
        "client_min_messages": "notice",
        # How values are read and written.
        "TimeZone": "UTC",
        "DateStyle": "ISO, MDY",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "standard_conforming_strings": "on",
        "array_nulls": "on",
        "row_security": "on",
        # Planning costs more than running, and no table is ever to be read as a whole:
        # neither depends on the statistics of the moment.
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        # Before PostgreSQL 18 a plan with what is off counts as expensive, and would be compiled.
        "jit": "off",
        "lock_timeout": f"{math.ceil(timeouts.lock * 1000)}",
        "statement_timeout": f"{math.ceil(timeouts.statement * 1000)}",
        "idle_in_transaction_session_timeout": "10000",
        # Idle connections wait for the next request.
        "idle_session_timeout": "0",
    }


def session_conninfo(
    url: str, timeouts: Timeouts, *, replica: bool, role: str | None = ROLE
) -> str:
    """Complete a connection string with what every connection of the service relies on.

    Options of the caller's own come first, so that these win.
    """
    settings = session_settings(timeouts) | ({"role": role} if role else {})
    ours = " ".join(
        f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items()
    )
    given = conninfo_to_dict(url)
    return make_conninfo(
        url,
        options=f"{given.get('options', '')} {ours}".strip(),
        client_encoding=ENCODING,
        application_name=given.get("application_name", "appointments"),
        connect_timeout=given.get("connect_timeout", 5),
        # Fresh reads too must not meet a standby, which may be behind.
        target_session_attrs="any" if replica else "read-write",
        # The addresses that a replica's name may have are alike.
        load_balance_hosts=given.get("load_balance_hosts", "random" if replica else None),
        # A server that is gone without a word is noticed in about ten seconds.
        keepalives_idle=given.get("keepalives_idle", 5),
        keepalives_interval=given.get("keepalives_interval", 2),
        keepalives_count=given.get("keepalives_count", 3),
        tcp_user_timeout=given.get("tcp_user_timeout", 10_000),
    )


def check_encoding(connection: AsyncConnection[Any]) -> None:
    """Raise DatabaseUnfit if the database does not keep every character as it is."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != ENCODING:
        raise DatabaseUnfit(
            f"the encoding of the database {connection.info.dbname} is {encoding}, not {ENCODING}:"
            f" move to one made by CREATE DATABASE ... ENCODING '{ENCODING}' TEMPLATE template0"
        )


async def check_session(connection: AsyncConnection[Any], timeouts: Timeouts) -> None:
    """Raise DatabaseUnfit, which names every setting that a new connection lacks.

    One round trip. A connection that is not fit, or does not answer, is closed.
    """
    try:
        check_encoding(connection)
        async with asyncio.timeout(_CHECKED_WITHIN):
            await _check_settings(connection, session_settings(timeouts))
    except BaseException:
        await connection.close()
        raise


async def _check_settings(connection: AsyncConnection[Any], wanted: Mapping[str, str]) -> None:
    encoding = connection.info.parameter_status("client_encoding")
    if encoding != ENCODING:
        raise DatabaseUnfit(f"the connection has client_encoding={encoding}, not {ENCODING}")
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"
            " UNION ALL SELECT 'user', session_user::text UNION ALL SELECT 'role', current_user",
            [[*wanted, "transaction_timeout"]],
            prepare=False,
        )
        found: dict[str, str] = dict(await cursor.fetchall())
    wanted = {"role": ROLE, **wanted}
    # Before PostgreSQL 17 there is none, so it cannot be sent; one that ends no statement
    # of ours may stay.
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
    statements = " ".join(f"ALTER ROLE {user} SET {name} = '{wanted[name]}';" for name in lacking)
    raise DatabaseUnfit(
        f"the connection has {has}: let its user carry what a pooler between drops, or what cannot"
        f" be sent: {statements}"
    )


def _plain(value: str) -> str:
    """Settings are alike whatever their spaces and capitals."""
    return "".join(value.split()).casefold()
