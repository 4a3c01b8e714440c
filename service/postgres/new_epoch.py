"""Begins a new epoch, after the database was restored to an earlier time."""

from typing import LiteralString

import psycopg

from service.postgres.epochs import current_epoch
from service.postgres.schema import SchemaOutdated, connect, lacking_migrations
from service.postgres.session import DatabaseUnfit, Session, Timeouts, check_encoding

# Who connects from now on waits for the lock before reading the epoch.
_LOCK: LiteralString = "LOCK TABLE public.epochs IN ACCESS EXCLUSIVE MODE"

# Those that could be services or workers.
_OTHERS: LiteralString = """
    SELECT pid, usename FROM pg_stat_activity
    WHERE datname = current_database()
        AND pid <> pg_backend_pid()
        AND pg_has_role(usesysid, 'appointments_caller', 'MEMBER')
    ORDER BY pid
"""

_BEGIN: LiteralString = """
    INSERT INTO public.epochs (began_at)
    SELECT greatest(
        date_trunc('second', clock_timestamp()),
        (SELECT max(began_at) + interval '1 second' FROM public.epochs)
    )
    RETURNING began_at
"""

# The last change that was delivered is delivered again, so that every receiver hears of the epoch.
_STEP_BACK: tuple[LiteralString, ...] = (
    "UPDATE public.webhooks SET cursor_revision = cursor_revision - 1 WHERE cursor_revision > 0",
    "UPDATE public.event_cursors SET revision = revision - 1 WHERE revision > 0",
)


class OthersConnected(Exception):
    """Other sessions use the database. No epoch has begun."""


async def begin_epoch(url: str, timeouts: Timeouts) -> str:
    """Begin a new epoch, as the owner of the tables, and return it.

    Raises OthersConnected, SchemaOutdated, DatabaseUnfit, and psycopg.Error if the database cannot
    be reached or the user may not.
    """
    async with await connect(url, timeouts, replica=False, role=None) as connection:
        check_encoding(connection)
        await connection.require_server("others that use the pooler could not be seen")
        if lacking := await lacking_migrations(connection):
            raise SchemaOutdated(lacking)
        try:
            async with connection.transaction():
                return await _begin(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseUnfit(
                "the user of DATABASE_URL must be the one that owns the tables"
            ) from error


async def _begin(connection: Session) -> str:
    # The number of webhooks and organizations is not limited.
    await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute(_LOCK)
    cursor = await connection.execute(_OTHERS)
    if others := await cursor.fetchall():
        named = ", ".join(f"{user} (process {pid})" for pid, user in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise OthersConnected(
            f"others are connected to the database: {named}{more}; stop all services and workers"
            " first, so that none of them continues with the revisions that are gone"
        )
    await connection.execute(_BEGIN)
    for statement in _STEP_BACK:
        await connection.execute(statement)
    return await current_epoch(connection)
