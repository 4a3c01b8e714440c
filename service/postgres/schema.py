"""Checks at startup that the database is suitable and migrated."""

import asyncio
from collections.abc import Sequence
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from service.postgres.session import (
    DatabaseUnfit,
    Timeouts,
    check_encoding,
    check_session,
    session_conninfo,
)

# The migrations that the code needs. All are looked for: a database that was migrated from two
# branches may have the newest one and lack others. A test compares them with migrations/.
NEEDED_MIGRATIONS = (
    "20261126000101",
    "20261126000102",
    "20261126000103",
    "20261126000104",
    "20261126000105",
    "20261126000106",
    "20261126000107",
    "20261126000108",
    "20261126000109",
    "20261126000110",
    "20261126000111",
    "20261126000112",
    "20261126000113",
    "20261126000114",
    "20261126000115",
)
# Returns those that a database lacks, in an array.
LACKING: LiteralString = """
    SELECT array(
        SELECT needed FROM unnest(%s::text[]) AS needed
        EXCEPT SELECT version FROM schema_migrations
        ORDER BY needed
    )
"""


class SchemaOutdated(Exception):
    """The database lacks migrations that this code needs."""

    MAX_NAMED = 3

    def __init__(self, lacking: Sequence[str]) -> None:
        """Make the message from the versions of the migrations."""
        named = ", ".join(lacking[: self.MAX_NAMED])
        more = len(lacking) - self.MAX_NAMED
        super().__init__(
            f"the database lacks the migration{'s' if len(lacking) > 1 else ''} {named}"
            f"{f' and {more} more' if more > 0 else ''}; run 'make migrate' first"
        )


async def check_primary(url: str, timeouts: Timeouts, *, role: str) -> None:
    """Raise an error if the program of a role cannot work with the primary.

    Raises DatabaseUnfit because of its encoding, a read-only state, the user's rights or a
    setting; SchemaOutdated if a migration that this code needs is not applied;
    psycopg.Error if the database cannot be reached.
    """
    # Connects without the role first, to report precisely if the role is the problem.
    async with await connect(session_conninfo(url, timeouts, replica=False, role=None)) as plain:
        check_encoding(plain)
        exists = await _may_take(role, plain)
        if lacking := await _lacking(plain, role) if exists else NEEDED_MIGRATIONS:
            raise SchemaOutdated(lacking)
    async with await connect(
        session_conninfo(url, timeouts, replica=False, role=role)
    ) as connection:
        await check_session(connection, timeouts, role=role)


async def check_replica(url: str, timeouts: Timeouts, *, role: str) -> None:
    """Raise DatabaseUnfit if a replica is unsuitable. Ignores one that cannot be reached."""
    try:
        async with asyncio.timeout(timeouts.statement):
            async with await connect(
                session_conninfo(url, timeouts, replica=True, role=None)
            ) as plain:
                check_encoding(plain)
                # The replica may not have replayed the first migration yet.
                if not await _may_take(role, plain):
                    return
            async with await connect(
                session_conninfo(url, timeouts, replica=True, role=role)
            ) as connection:
                await check_session(connection, timeouts, role=role)
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


async def _may_take(role: str, connection: AsyncConnection[TupleRow]) -> bool:
    """Return whether the role exists. Raises DatabaseUnfit if the user may not assume it."""
    try:
        async with connection.transaction():
            await connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
    except psycopg.errors.InvalidParameterValue:
        return False
    except psycopg.errors.InsufficientPrivilege as error:
        user = sql.Identifier(connection.info.user).as_string()
        raise DatabaseUnfit(
            f"the user may not take the role {role}: an administrator must GRANT {role} TO {user}"
        ) from error
    return True


async def _lacking(connection: AsyncConnection[TupleRow], role: str) -> Sequence[str]:
    async with connection.transaction():
        await connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
        return await lacking_migrations(connection)


async def lacking_migrations(connection: AsyncConnection[TupleRow]) -> Sequence[str]:
    """Return the versions of the needed migrations that are not applied."""
    cursor = await connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL")
    if await cursor.fetchone() != (True,):
        return NEEDED_MIGRATIONS
    cursor = await connection.execute(LACKING, (list(NEEDED_MIGRATIONS),))
    [(lacking,)] = await cursor.fetchall()
    return list(lacking)
