"""Checks at startup that the database is suitable and migrated."""

import asyncio

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from service.postgres.session import (
    ROLE,
    DatabaseUnfit,
    Timeouts,
    check_encoding,
    check_session,
    session_conninfo,
)

# The newest migration that the code needs. A test compares it with migrations/.
NEEDED_MIGRATION = "20261126000105"


class SchemaOutdated(Exception):
    """The database lacks a migration that this code needs."""


async def check_primary(url: str, timeouts: Timeouts) -> None:
    """Raise an error if the service cannot work with the primary.

    Raises DatabaseUnfit because of its encoding, a read-only state, the user's rights or a
    setting; SchemaOutdated if the migration that this code needs is not applied;
    psycopg.Error if the database cannot be reached.
    """
    # Connects without the role first, to report precisely if the role is the problem.
    async with await connect(session_conninfo(url, timeouts, replica=False, role=None)) as plain:
        check_encoding(plain)
        if not await _may_take_role(plain) or not await _is_migrated(plain):
            raise SchemaOutdated(
                f"the database lacks the migration {NEEDED_MIGRATION}; run 'make migrate' first"
            )
    async with await connect(session_conninfo(url, timeouts, replica=False)) as connection:
        await check_session(connection, timeouts)


async def check_replica(url: str, timeouts: Timeouts) -> None:
    """Raise DatabaseUnfit if a replica is unsuitable. Ignores one that cannot be reached."""
    try:
        async with asyncio.timeout(timeouts.statement):
            async with await connect(
                session_conninfo(url, timeouts, replica=True, role=None)
            ) as plain:
                check_encoding(plain)
                # The replica may not have replayed the first migration yet.
                if not await _may_take_role(plain):
                    return
            async with await connect(session_conninfo(url, timeouts, replica=True)) as connection:
                await check_session(connection, timeouts)
    except (psycopg.OperationalError, TimeoutError):
        return


async def connect(conninfo: str) -> AsyncConnection[TupleRow]:
    """Return a connection. Raises DatabaseUnfit if it must be read-write and is not."""
    try:
        return await AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        if "session is read-only" not in str(error):
            raise
        raise DatabaseUnfit(
            "the database takes no writes: it is a standby, or default_transaction_read_only is"
            " preset (ALTER DATABASE ... RESET default_transaction_read_only)"
        ) from error


async def _may_take_role(connection: AsyncConnection[TupleRow]) -> bool:
    """Return whether the role exists. Raises DatabaseUnfit if the user may not assume it."""
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {ROLE}")
    except psycopg.errors.InvalidParameterValue:
        return False
    except psycopg.errors.InsufficientPrivilege as error:
        user = sql.Identifier(connection.info.user).as_string()
        raise DatabaseUnfit(
            f"the user may not take the role {ROLE}: an administrator must GRANT {ROLE} TO {user}"
        ) from error
    return True


async def _is_migrated(connection: AsyncConnection[TupleRow]) -> bool:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL ROLE {ROLE}")
        cursor = await connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL")
        if await cursor.fetchone() != (True,):
            return False
        cursor = await connection.execute(
            "SELECT 1 FROM schema_migrations WHERE version = %s", (NEEDED_MIGRATION,)
        )
        return await cursor.fetchone() is not None
