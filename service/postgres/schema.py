"""Checks at startup that the database is suitable and migrated."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

import psycopg
import structlog
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from service.postgres.epochs import current_epoch
from service.postgres.session import (
    DatabaseUnfit,
    Session,
    Timeouts,
    check_encoding,
    plain_conninfo,
    session_settings,
)

log = structlog.get_logger()

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
    "20261126000116",
    "20261126000117",
    "20261126000118",
    "20261126000120",
    "20261126000121",
    "20261126000122",
    "20261126000123",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Primary:
    """What a program has to know of the database before its first statement."""

    epoch: str
    # Whether it is distributed by organization (docs/scaling.md).
    distributed: bool


async def check_primary(url: str, timeouts: Timeouts, *, role: str) -> Primary:
    """Describe the primary, or raise an error if the program of a role cannot work with it.

    Raises DatabaseUnfit because of its encoding, a read-only state, the user's rights or a
    setting; SchemaOutdated if a migration that this code needs is not applied;
    psycopg.Error if the database cannot be reached.
    """
    # Connects without the role first, to report precisely if the role is the problem.
    async with await connect(url, timeouts, replica=False, role=None) as plain:
        check_encoding(plain)
        if not await _may_take(role, plain):
            raise SchemaOutdated(NEEDED_MIGRATIONS)
    async with await connect(url, timeouts, replica=False, role=role) as session:
        await session.check()
        if lacking := await lacking_migrations(session):
            raise SchemaOutdated(lacking)
        if session.pooled:
            log.info("the database is behind a pooler", role=role)
        if session.distributed:
            log.info("the database is distributed by organization", role=role)
        return Primary(epoch=await current_epoch(session), distributed=session.distributed)


async def check_replica(url: str, timeouts: Timeouts, *, role: str) -> None:
    """Raise DatabaseUnfit if a replica is unsuitable. Ignores one that cannot be reached."""
    try:
        async with asyncio.timeout(timeouts.statement):
            async with await connect(url, timeouts, replica=True, role=None) as plain:
                check_encoding(plain)
                # The replica may not have replayed the first migration yet.
                if not await _may_take(role, plain):
                    return
            async with await connect(url, timeouts, replica=True, role=role) as session:
                await session.check()
    except (psycopg.OperationalError, TimeoutError):
        return


async def connect(url: str, timeouts: Timeouts, *, replica: bool, role: str | None) -> Session:
    """Return a session. Raises DatabaseUnfit if it must be read-write and is not."""
    with refusing_read_only():
        return await Session.connect(
            plain_conninfo(url, replica=replica),
            settings=session_settings(timeouts, role=role),
            autocommit=True,
        )


@contextmanager
def refusing_read_only() -> Iterator[None]:
    """Raise DatabaseUnfit if libpq finds no server that takes writes."""
    try:
        yield
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


async def lacking_migrations(session: Session) -> Sequence[str]:
    """Return the versions of the needed migrations that are not applied."""
    if await session.fetch("SELECT to_regclass('schema_migrations') IS NOT NULL") != [(True,)]:
        return NEEDED_MIGRATIONS
    [(lacking,)] = await session.fetch(LACKING, (list(NEEDED_MIGRATIONS),))
    return list(lacking)
