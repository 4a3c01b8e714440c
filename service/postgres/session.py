"""The settings of every PostgreSQL session, independent of presets of database and role.

The settings are sent as startup options, which override `ALTER DATABASE ... SET` and
`ALTER ROLE ... SET`. A pooler may drop them silently, so every new connection is checked.
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


class DatabaseUnfit(Exception):
    """The database or the connection to it is unsuitable. The message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Timeouts in seconds. Each is to be far below the usual deadline of a caller."""

    connection: float
    lock: float
    statement: float


def session_settings(timeouts: Timeouts) -> dict[str, str]:
    """Return the settings of every connection of the service, except role and encoding."""
    return {
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


def session_conninfo(url: str, timeouts: Timeouts, *, replica: bool, role: str | None) -> str:
    """Add the settings of every connection of the service to a connection string.

    They follow the `options` of the connection string, and so override them.
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


def check_encoding(connection: AsyncConnection[Any]) -> None:
    """Raise DatabaseUnfit if the database's encoding is not UTF8."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != ENCODING:
        raise DatabaseUnfit(
            f"the encoding of the database {connection.info.dbname} is {encoding}, not {ENCODING}:"
            f" use one created by CREATE DATABASE ... ENCODING '{ENCODING}' TEMPLATE template0"
        )


async def check_session(connection: AsyncConnection[Any], timeouts: Timeouts, *, role: str) -> None:
    """Raise DatabaseUnfit, naming every wrong setting of a new connection.

    Takes one round trip. Closes a connection that is unsuitable or does not respond.
    """
    try:
        check_encoding(connection)
        async with asyncio.timeout(_CHECK_TIMEOUT):
            await _check_settings(connection, {"role": role, **session_settings(timeouts)})
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
    wanted = dict(wanted)
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
        f"the connection has {has}: set for its user what cannot be sent, or what a pooler in"
        f" between drops: {statements}"
    )


def _plain(value: str) -> str:
    """Normalize a setting for comparison: without spaces, in lower case."""
    return "".join(value.split()).casefold()
