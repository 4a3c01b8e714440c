"""Removes all of one organization, while the service runs and writes to the others.

The user of `DATABASE_URL` must be the one that owns the tables: the service's own role can delete
neither appointments nor history.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from service.postgres.schema import SchemaOutdated, connect, lacking_migrations
from service.postgres.session import (
    IS_DISTRIBUTED,
    DatabaseUnfit,
    Session,
    Timeouts,
    check_encoding,
)

# Rows that one transaction removes.
BATCH = 2000
# Of the last transaction. A worker may wait for the organization with its lease in hand; its wait
# ends after LOCK_TIMEOUT.
ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A table with the columns that order the rows of an organization."""

    name: LiteralString
    key: tuple[LiteralString, ...] = ()

    def batch(self, *, first: bool) -> LiteralString:
        """Return what removes the next rows, after those of the last batch, which are dead now."""
        columns: LiteralString = ", ".join(self.key)
        places: LiteralString = ", ".join(["%s"] * len(self.key))
        after: LiteralString = "" if first else f"AND ({columns}) > ({places})"
        return f"""
            DELETE FROM public.{self.name}
            WHERE ctid = ANY (ARRAY(
                SELECT next.ctid
                FROM public.{self.name} AS next
                WHERE organization_id = %s {after}
                ORDER BY {columns}
                LIMIT {BATCH}
            ))
            RETURNING {columns}
        """


# What is queued goes first, so that no worker tries to apply it meanwhile.
_LARGE = (
    _Table(name="queued_operations", key=("sequence",)),
    _Table(name="webhook_deliveries", key=("webhook_id", "delivery_id")),
    _Table(name="operations", key=("operation_id",)),
    _Table(name="unchanged_writes", key=("idempotency_key",)),
    _Table(name="erased_keys", key=("key_digest",)),
    _Table(name="appointments", key=("appointment_id", "ordinal")),
    _Table(name="appointment_history", key=("revision",)),
)
_SMALL = (
    _Table(name="webhooks"),
    _Table(name="operation_leases"),
    _Table(name="event_cursors"),
    _Table(name="organizations"),
)
TABLES = (*_LARGE, *_SMALL)

# What was accepted before this time is not applied any more: there may be such operations in
# RabbitMQ.
_NOTE = """
    INSERT INTO public.purged_organizations (organization_id, purged_at)
    VALUES (%s, clock_timestamp())
    ON CONFLICT (organization_id) DO UPDATE SET purged_at = excluded.purged_at
"""

# The publisher of events may be about to store a position of the organization. It loses its lease,
# as to another worker, and reads all positions again.
_STOP_PUBLISHER = """
    UPDATE public.event_publishers SET fence = fence + 1, leased_until = '-infinity'
"""

_MISSING = """
    SELECT array_agg(wanted) FILTER (WHERE NOT has_table_privilege('public.' || wanted, 'DELETE'))
    FROM unnest(%s::text[]) AS wanted
    WHERE to_regclass('public.' || wanted) IS NOT NULL
"""

_STORED = """
    SELECT
        coalesce((SELECT revision FROM public.organizations WHERE organization_id = %(id)s), 0),
        (SELECT count(*) FROM public.appointments WHERE organization_id = %(id)s AND ordinal = 0),
        (SELECT count(*) FROM public.webhooks WHERE organization_id = %(id)s)
"""


class Locked(Exception):
    """Another session holds what the purge needs. The message says what was removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the database has of an organization, for a question to the operator."""

    database: str
    revision: int
    appointments: int
    webhooks: int


async def purge_organization(
    url: str,
    timeouts: Timeouts,
    organization_id: str,
    *,
    is_meant: Callable[[Stored], bool],
) -> Mapping[str, int] | None:
    """Remove all rows of an organization; return how many there were of each table.

    Asks `is_meant` before. Returns None, with nothing removed, if that says no.

    The organization's lock is held from the first batch to the last: its writes are refused with
    LOCK_TIMEOUT, and all other organizations are written as usual. Each batch is a transaction,
    so that an interrupted purge has removed a part. The next one removes the rest.

    Raises SchemaOutdated, DatabaseUnfit, Locked or psycopg.Error.
    """
    async with await connect(url, timeouts, replica=False, role=None) as connection:
        check_encoding(connection)
        await connection.require_server("the purge keeps a lock over several transactions")
        await _check_rights(connection)
        cursor = await connection.execute(_STORED, {"id": organization_id})
        [(revision, appointments, webhooks)] = await cursor.fetchall()
        stored = Stored(
            database=connection.info.dbname,
            revision=revision,
            appointments=appointments,
            webhooks=webhooks,
        )
        if not is_meant(stored):
            return None
        if await connection.fetch(IS_DISTRIBUTED) == [(True,)]:
            return await _remove_on_node(connection, organization_id)
        try:
            await connection.execute(
                "SELECT pg_advisory_lock(organization_lock_key(%s))", (organization_id,)
            )
        except psycopg.errors.LockNotAvailable as error:
            raise Locked(
                "another session holds the lock of the organization; nothing was removed, try again"
            ) from error
        removed = Counter({table.name: 0 for table in TABLES})
        for table in _LARGE:
            removed[table.name] = await _remove_large(connection, table, organization_id)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with connection.transaction():
                    rest = await _remove_rest(connection, organization_id)
                break
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                if attempt == ATTEMPTS:
                    raise Locked(
                        "another session holds rows of the organization; most of it is removed,"
                        " run the command again"
                    ) from error
        removed.update(rest)
        return removed


async def _remove_on_node(connection: Session, organization_id: str) -> Mapping[str, int]:
    """Remove an organization of a distributed database: in one transaction, on its node."""
    await connection.execute("SET statement_timeout = 0")
    try:
        removed = await connection.fetch(
            "SELECT removed_from, removed FROM purge_organization(%s::text)", (organization_id,)
        )
    except psycopg.errors.LockNotAvailable as error:
        raise Locked(
            "another session holds the lock of the organization; nothing was removed, try again"
        ) from error
    # The publisher's row is on the coordinator. A position that it has stored since is removed too.
    async with connection.transaction():
        await connection.execute(_STOP_PUBLISHER)
        await connection.execute(
            "DELETE FROM public.event_cursors WHERE organization_id = %s", (organization_id,)
        )
    return dict(removed)


async def _check_rights(connection: Session) -> None:
    cursor = await connection.execute(_MISSING, ([table.name for table in TABLES],))
    [(missing,)] = await cursor.fetchall()
    if missing:
        raise DatabaseUnfit(
            f"the user {connection.info.user} may not delete from {', '.join(missing)}: give the"
            " DATABASE_URL of the user that owns the tables, who also runs the migrations"
        )
    if lacking := await lacking_migrations(connection):
        raise SchemaOutdated(lacking)


async def _remove_rest(
    connection: AsyncConnection[TupleRow], organization_id: str
) -> Mapping[str, int]:
    """Remove the small tables, and what was added to the others: accepting takes no lock."""
    await connection.execute(_STOP_PUBLISHER)
    removed: dict[str, int] = {}
    for table in TABLES:
        cursor = await connection.execute(
            f"DELETE FROM public.{table.name} WHERE organization_id = %s", (organization_id,)
        )
        removed[table.name] = cursor.rowcount
    await connection.execute(_NOTE, (organization_id,))
    return removed


async def _remove_large(
    connection: AsyncConnection[TupleRow], table: _Table, organization_id: str
) -> int:
    """Remove the rows of a large table in batches; return how many there were."""
    removed = 0
    last: TupleRow = ()
    while True:
        cursor = await connection.execute(table.batch(first=not removed), (organization_id, *last))
        keys = await cursor.fetchall()
        removed += len(keys)
        if len(keys) < BATCH:
            return removed
        last = max(keys)
