"""Makes a database distributed by organization, where the extension citus is (docs/scaling.md).

Each run of the migrations ends with it. What is done already is left as it is. A function that a
migration has replaced is in the form for PostgreSQL alone until then, and calls of it may fail.
"""

import asyncio
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

from service.postgres.session import (
    CALLER_ROLE,
    DISTRIBUTED_SETTINGS,
    WORKER_ROLE,
    DatabaseUnfit,
    Session,
    Timeouts,
    session_settings,
)

VARIANTS = Path("migrations/citus.sql")

MIN_VERSION = 13

# All tables with organizations. An organization's rows of all of them are on one node.
#
# The others stay on the coordinator, which alone uses them: api_keys (a trigger numbers its
# changes), schema_migrations, event_publishers (one row for each consumer), request_buckets (not
# logged), operation_queue_start (not used).
TABLES = (
    "organizations",
    "appointments",
    "appointment_history",
    "unchanged_writes",
    "erased_keys",
    "operations",
    "queued_operations",
    "operation_leases",
    "webhooks",
    "webhook_deliveries",
    "event_cursors",
    "purged_organizations",
)

# All servers have a copy of it, since every connection reads it, those to nodes too.
REFERENCE_TABLE = "epochs"

# What programs call for one organization, in a statement of its own. The call goes to the node of
# the organization as a whole, and takes its locks there.
DELEGATED = (
    "advance_webhook",
    "apply_atomically",
    "apply_operations",
    "apply_queued",
    "apply_writes",
    "conflicts_of_write",
    "create_webhook",
    "delete_webhook",
    "fail_webhook",
    "give_up_operation",
    "no_write_in_progress",
    "purge_organization",
    "reencrypt_webhook",
    "refuse_operation",
    "release_webhook",
    "replace_webhook",
    "replay_webhook",
    "revision_at",
    "rotate_webhook_secret",
)

# The settings of a session do not travel to the nodes; those of a role are there. LOCK_TIMEOUT and
# STATEMENT_TIMEOUT are the service's settings, not known here: these are their defaults.
_TIMEOUTS = Timeouts(connection=1, lock=2, statement=5)

_IS_LOCAL: LiteralString = """
    SELECT NOT EXISTS (SELECT 1 FROM pg_dist_partition WHERE logicalrelid = %s::regclass)
"""

_HAS_TRIGGER: LiteralString = """
    SELECT EXISTS (
        SELECT 1 FROM pg_trigger
        WHERE tgrelid = 'queued_operations'::regclass AND tgname = 'queued_operations_numbered'
    )
"""

# Delegated functions run on nodes that know the tables, and tables with one copy of each shard.
_UNREADY: LiteralString = """
    SELECT count(*) FROM pg_dist_node WHERE isactive AND NOT (hasmetadata AND metadatasynced)
"""

# All functions but triggers and those of extensions.
_FUNCTIONS: LiteralString = """
    SELECT p.proname, p.oid::regprocedure::text
    FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND p.prokind = 'f'
        AND p.prorettype <> 'trigger'::regtype
        AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    ORDER BY 1
"""


async def distribute(connection: Session) -> bool:
    """Distribute tables and functions; return whether the database has the extension.

    `connection` is that of the tables' owner, to the coordinator, without a transaction. Raises
    DatabaseUnfit.
    """
    found = await connection.fetch("SELECT extversion FROM pg_extension WHERE extname = 'citus'")
    if not found:
        return False
    try:
        await _check(connection, str(found[0][0]))
        await _distribute_tables(connection)
        # One transaction.
        await connection.execute(await asyncio.to_thread(VARIANTS.read_bytes))
        await _distribute_functions(connection)
        await _prepare_roles(connection)
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise DatabaseUnfit(f"the tables or functions cannot be distributed: {reason}") from error
    return True


async def _check(connection: Session, version: str) -> None:
    if int(version.partition(".")[0].partition("-")[0]) < MIN_VERSION:
        raise DatabaseUnfit(f"the extension citus is {version}: {MIN_VERSION} or later is needed")
    [(copies,)] = await connection.fetch("SELECT current_setting('citus.shard_replication_factor')")
    if copies != "1":
        raise DatabaseUnfit(
            "citus.shard_replication_factor must be 1: calls go to a node only if it has the only"
            " copy; use standbys of the nodes"
        )
    [(unready,)] = await connection.fetch(_UNREADY)
    if unready:
        raise DatabaseUnfit(
            f"{unready} nodes do not have the metadata yet:"
            " SELECT start_metadata_sync_to_all_nodes()"
        )


async def _distribute_tables(connection: Session) -> None:
    """Distribute the tables that are not yet, each in a transaction of its own."""
    # Only advance_operation_queue needs it, which citus.sql replaces. A distributed table
    # can have none.
    if await connection.fetch(_HAS_TRIGGER) == [(True,)]:
        await connection.execute("DROP TRIGGER queued_operations_numbered ON queued_operations")
    for table in TABLES:
        if await connection.fetch(_IS_LOCAL, (table,)) == [(True,)]:
            other = "none" if table == TABLES[0] else TABLES[0]
            await connection.execute(
                "SELECT create_distributed_table(%s, 'organization_id', colocate_with => %s)",
                (table, other),
            )
            await _remove_local_rows(connection, table)
    if await connection.fetch(_IS_LOCAL, (REFERENCE_TABLE,)) == [(True,)]:
        await connection.execute("SELECT create_reference_table(%s)", (REFERENCE_TABLE,))
        await _remove_local_rows(connection, REFERENCE_TABLE)


async def _remove_local_rows(connection: Session, table: str) -> None:
    """Remove the rows that the coordinator had before, which are on the nodes now."""
    await connection.execute("SELECT truncate_local_data_after_distributing_table(%s)", (table,))


async def _distribute_functions(connection: Session) -> None:
    """Create all functions on the nodes, since delegated functions call the others there."""
    for name, identity in await connection.fetch(_FUNCTIONS):
        if name in DELEGATED:
            await connection.execute(
                "SELECT create_distributed_function(%s, 'p_organization_id', colocate_with => %s)",
                (identity, TABLES[0]),
            )
        else:
            await connection.execute("SELECT create_distributed_function(%s)", (identity,))


async def _prepare_roles(connection: Session) -> None:
    """Let the roles connect to the nodes: the coordinator does so as the current role."""
    settings = session_settings(_TIMEOUTS, role=None) | DISTRIBUTED_SETTINGS
    database = sql.Identifier(connection.info.dbname)
    for role in (CALLER_ROLE, WORKER_ROLE):
        await connection.execute(sql.SQL("ALTER ROLE {} LOGIN").format(sql.Identifier(role)))
        for name, value in settings.items():
            await connection.execute(
                sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}").format(
                    sql.Identifier(role), database, sql.Identifier(name), sql.Literal(value)
                )
            )
