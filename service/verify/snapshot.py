"""One snapshot of the database, which is read in parts of bounded size."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, IsolationLevel, sql
from psycopg.adapt import Buffer, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format
from psycopg.rows import tuple_row

from service.postgres.schema import LACKING, NEEDED_MIGRATIONS, SchemaOutdated
from service.postgres.session import ENCODING, IS_DISTRIBUTED, DatabaseUnfit

Row = tuple[Any, ...]

# Changes of a part, of which every check reads all before the next part begins. An organization
# is never divided.
PART_SIZE = 200_000

# Rows of one message from libpq.
_CHUNK = 1000

# For the transaction only, so that a pooler in between keeps nothing. The statements read whole
# tables and sort them: in this memory, otherwise in temporary files, which a standby allows too.
_SETTINGS = {
    "search_path": "public",
    "work_mem": "64MB",
    "statement_timeout": "0",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "0",
    "jit": "off",
    "enable_seqscan": "on",
    "plan_cache_mode": "auto",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    # A row that a policy hides is an error, and not a row that does not exist.
    "row_security": "off",
}

# What is read, with the columns if not all of them: those that the role of the worker may read.
_READ = {
    "schema_migrations": None,
    "organizations": None,
    "appointments": None,
    "appointment_history": None,
    "unchanged_writes": None,
    "operations": None,
    "queued_operations": None,
    "event_cursors": None,
    "webhook_deliveries": None,
    "webhooks": ("organization_id", "webhook_id", "cursor_revision"),
}

# The condition that a row belongs to a part. Without an upper end, the part has all the rest, so
# that no row belongs to none.
IN_PART: LiteralString = (
    "organization_id >= %(first)s"
    " AND (%(before)s::text IS NULL OR organization_id < %(before)s::text)"
)

_SIZES: LiteralString = """
    SELECT organization_id, revision FROM organizations ORDER BY organization_id
"""

_STORED: LiteralString = f"""
    SELECT
        (SELECT count(*) FROM organizations WHERE {IN_PART}),
        (SELECT count(*) FROM appointments WHERE ordinal = 0 AND {IN_PART}),
        (SELECT count(*) FROM appointment_history WHERE {IN_PART})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The organizations from `first` until `before`, which is None for the last part.

    `changes` is their number by the latest revisions.
    """

    first: str
    before: str | None
    changes: int

    @property
    def parameters(self) -> dict[str, Any]:
        return {"first": self.first, "before": self.before}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The number of rows of a snapshot."""

    organizations: int
    appointments: int
    changes: int


class Microseconds(Loader):
    """Loads a time as PostgreSQL has it: microseconds since 2000, infinity included."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int.from_bytes(data, "big", signed=True)


class Snapshot:
    """What one transaction sees. Everything is read through it, and nothing is kept."""

    def __init__(self, connection: Connection[Row]) -> None:
        self._connection = connection

    def stream(
        self, statement: LiteralString, parameters: Mapping[str, Any], *, raw_times: bool = False
    ) -> Iterator[Row]:
        """Yield the rows of a statement. Read all of them before the next statement.

        With `raw_times`, times are integers as `Microseconds` has them.
        """
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            if raw_times:
                cursor.adapters.register_loader("timestamptz", Microseconds)
            size = _CHUNK if psycopg.capabilities.has_stream_chunked() else 1
            yield from cursor.stream(statement, parameters, binary=True, size=size)

    def parts(self, organization_id: str | None) -> list[Part]:
        """Return the parts of all organizations, or the only part of one."""
        if organization_id is not None:
            # The least text after an id is that with one more character, the least one.
            part = Part(first=organization_id, before=organization_id + "\x01", changes=0)
            return [replace(part, changes=self.stored([part]).changes)]
        parts: list[Part] = []
        first, changes = "", 0
        for organization, revision in self.stream(_SIZES, {}):
            if changes and changes + revision > PART_SIZE:
                parts.append(Part(first=first, before=organization, changes=changes))
                first, changes = organization, 0
            changes += revision
        return [*parts, Part(first=first, before=None, changes=changes)]

    def stored(self, parts: list[Part]) -> Stored:
        """Return the number of rows from the first to the last of the parts."""
        parameters = {"first": parts[0].first, "before": parts[-1].before}
        [(organizations, appointments, changes)] = self.stream(_STORED, parameters)
        return Stored(organizations=organizations, appointments=appointments, changes=changes)


@contextmanager
def snapshot_of(url: str) -> Iterator[Snapshot]:
    """Connect to a primary or a standby, and take a snapshot of it.

    Takes no locks but those of every SELECT, which delay no write. Raises psycopg.Error,
    DatabaseUnfit if the user may not read what is checked, SchemaOutdated.
    """
    given = conninfo_to_dict(url)
    conninfo = make_conninfo(
        url,
        client_encoding=ENCODING,
        application_name=given.get("application_name", "appointments verify"),
        connect_timeout=given.get("connect_timeout", 5),
    )
    with psycopg.connect(conninfo, prepare_threshold=None) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        settings = dict(_SETTINGS)
        if connection.info.server_version >= 170000:
            settings["transaction_timeout"] = "0"
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, true)", (name, value))
        _check_schema(connection)
        if connection.execute(IS_DISTRIBUTED).fetchone() == (True,):
            raise DatabaseUnfit(
                "the database is distributed by organization: one snapshot does not see all nodes"
            )
        _check_privileges(connection)
        yield Snapshot(connection)


def _check_schema(connection: Connection[Row]) -> None:
    found = connection.execute(
        "SELECT has_table_privilege(oid, 'SELECT') FROM pg_class"
        " WHERE oid = to_regclass('schema_migrations')"
    ).fetchone()
    if found == (False,):
        _refuse(connection, ["schema_migrations"])
    if found is None:
        raise SchemaOutdated(NEEDED_MIGRATIONS)
    [(lacking,)] = connection.execute(LACKING, (list(NEEDED_MIGRATIONS),)).fetchall()
    if lacking:
        raise SchemaOutdated(lacking)


def _check_privileges(connection: Connection[Row]) -> None:
    lacking = []
    for table, columns in _READ.items():
        found = connection.execute(
            "SELECT has_table_privilege(%(table)s, 'SELECT')"
            " OR coalesce((SELECT bool_and(has_column_privilege(%(table)s, name, 'SELECT'))"
            " FROM unnest(%(columns)s::text[]) AS name), false)",
            {"table": table, "columns": list(columns or ())},
        ).fetchone()
        if found != (True,):
            lacking.append(table)
    if lacking:
        _refuse(connection, lacking)
    hiding = connection.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE row_security_active(name)",
        (list(_READ),),
    ).fetchall()
    if hiding:
        user = sql.Identifier(connection.info.user).as_string()
        raise DatabaseUnfit(
            f"policies may hide rows of {', '.join(name for (name,) in hiding)} from the user"
            f" {user}: an administrator must ALTER ROLE {user} BYPASSRLS"
        )


def _refuse(connection: Connection[Row], tables: list[str]) -> None:
    user = sql.Identifier(connection.info.user).as_string()
    raise DatabaseUnfit(
        f"the user {user} may not read {', '.join(tables)}: an administrator must"
        f" GRANT pg_read_all_data TO {user}"
    )
