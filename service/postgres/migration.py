"""`migrations/migrate [--wait] [command]`: apply the migrations, or take the last one back.

Commands:

- `migrate`, the default: apply those that the database lacks, in the order of their versions, then
  make the tables distributed if the database has the extension citus;
- `rollback`: take the last applied one back;
- `status`: list all.

The files have the format of dbmate, and the table `schema_migrations` is the one that dbmate has.
Each migration is a transaction, unless its file says `transaction:false`. The tables are in the
schema `public`, whatever the presets of the database and its user. A database whose encoding is
not UTF8 is refused. `--wait` waits up to a minute for a server that does not listen yet. Must be
run in the directory that contains `migrations`.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import click
import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from runtime.secrets import secret_of
from service.postgres.distribution import distribute
from service.postgres.schema import refusing_read_only
from service.postgres.session import (
    CALLER_ROLE,
    ENCODING,
    WORKER_ROLE,
    DatabaseUnfit,
    Session,
    check_encoding,
    pooler_between,
    refuses_options,
    with_settings,
)

# A migration has no time limit by default. The options of the URL or PGOPTIONS may set limits.
DEFAULTS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "standard_conforming_strings": "on",
    "check_function_bodies": "on",
    "timezone": "UTC",
}
FIXED = {"search_path": "public"}

# The advisory lock of the process that migrates: any number that nothing else uses.
LOCK_KEY = 7236002
# Seconds between two attempts to get the lock, or to connect.
_INTERVAL = 0.2
# Seconds that `--wait` waits.
_MAX_WAIT = 60.0

_WHY_NO_POOLER = "migrations keep a lock over several transactions"


class MigrationFailed(Exception):
    """A migration failed, or a command cannot be executed. The message says why."""


def main() -> None:
    """Execute the command. An error is one line on standard error."""
    arguments = sys.argv[1:]
    try:
        url = secret_of("DATABASE_URL", os.environ)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not url:
        sys.exit("DATABASE_URL is not set, as in DATABASE_URL=postgresql://user:password@host/name")
    command = [argument for argument in arguments if argument != "--wait"] or ["migrate"]
    if len(command) > 1 or command[0] not in _COMMANDS:
        sys.exit(f"usage: migrate [--wait] [{'|'.join(_COMMANDS)}]")
    try:
        asyncio.run(_run(url, command[0], waiting="--wait" in arguments))
    except (DatabaseUnfit, MigrationFailed, psycopg.Error) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; the migrations that were complete are kept")


async def _run(url: str, command: str, *, waiting: bool) -> None:
    async with await _connect(url, time.monotonic() + _MAX_WAIT if waiting else 0) as connection:
        check_encoding(connection)
        await connection.require_server(_WHY_NO_POOLER)
        await _check_roles(connection)
        # A process that waited in the server would keep a snapshot, for whose end CREATE INDEX
        # CONCURRENTLY waits: a deadlock.
        while not await _locked(connection):  # noqa: ASYNC110  another process's lock
            await asyncio.sleep(_INTERVAL)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (version character varying NOT NULL PRIMARY KEY)"
        )
        await _COMMANDS[command](connection)


async def _connect(url: str, until: float) -> Session:
    """Connect, repeatedly until a time of the monotonic clock.

    Raises DatabaseUnfit, psycopg.OperationalError.
    """
    given = str(conninfo_to_dict(url).get("options", os.environ.get("PGOPTIONS", "")))
    defaults = conninfo_to_dict(with_settings("", DEFAULTS))["options"]
    conninfo = make_conninfo(
        url,
        client_encoding=ENCODING,
        connect_timeout=5,
        target_session_attrs="read-write",
        options=f"{defaults} {given}",
    )
    told = False
    while True:
        try:
            with refusing_read_only():
                return await Session.connect(conninfo, settings=FIXED, autocommit=True)
        except psycopg.OperationalError as error:
            if refuses_options(error):
                raise pooler_between(_WHY_NO_POOLER) from error
            if time.monotonic() >= until:
                raise
        if not told:
            click.echo("Waiting for the database")
            told = True
        await asyncio.sleep(_INTERVAL)


async def _check_roles(connection: Session) -> None:
    """Raise DatabaseUnfit, with the statements, if the migrations lack a role they cannot make."""
    [(has_caller, has_worker, may_create)] = await connection.fetch(
        "SELECT to_regrole(%s) IS NOT NULL, to_regrole(%s) IS NOT NULL, rolsuper OR rolcreaterole"
        " FROM pg_roles WHERE rolname = current_user",
        (CALLER_ROLE, WORKER_ROLE),
    )
    if may_create or (has_caller and has_worker):
        return
    caller = "" if has_caller else f"CREATE ROLE {CALLER_ROLE}; "
    worker = (
        f"GRANT {CALLER_ROLE} TO {WORKER_ROLE};"
        if has_worker
        else f"CREATE ROLE {WORKER_ROLE} IN ROLE {CALLER_ROLE};"
    )
    raise DatabaseUnfit(
        f"the user {connection.info.user} may not create roles: an administrator must first run"
        f" {caller}{worker}"
    )


async def _locked(connection: AsyncConnection[Any]) -> bool:
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [LOCK_KEY])
    return await cursor.fetchone() == (True,)


async def _migrate(connection: Session) -> None:
    applied = await _applied(connection)
    for version, path in _files().items():
        if version not in applied:
            async with _executed(connection, path, "up"):
                await connection.execute(
                    "INSERT INTO schema_migrations (version) VALUES (%s)", [version]
                )
            click.echo(f"Applied: {path.name}")
    await distribute(connection)


async def _rollback(connection: Session) -> None:
    applied = await _applied(connection)
    if not applied:
        raise MigrationFailed("no migration has been applied")
    version = applied[-1]
    path = _files().get(version)
    if path is None:
        raise MigrationFailed(f"there is no file of the migration {version}")
    async with _executed(connection, path, "down"):
        await connection.execute("DELETE FROM schema_migrations WHERE version = %s", [version])
    click.echo(f"Rolled back: {path.name}")


async def _status(connection: Session) -> None:
    applied = await _applied(connection)
    pending = 0
    for version, path in _files().items():
        pending += version not in applied
        click.echo(f"[{'X' if version in applied else ' '}] {path.name}")
    click.echo(f"\nPending: {pending}")


_COMMANDS = {"migrate": _migrate, "rollback": _rollback, "status": _status}


async def _applied(connection: Session) -> Sequence[str]:
    rows = await connection.fetch("SELECT version FROM schema_migrations ORDER BY version")
    return [version for (version,) in rows]


def _files() -> dict[str, Path]:
    """Return the files by version, in the order of the versions.

    Raises MigrationFailed if two have the same version: one of them would never be applied.
    """
    files: dict[str, Path] = {}
    for path in sorted(Path("migrations").glob("[0-9]*.sql")):
        other = files.setdefault(path.name.partition("_")[0], path)
        if other is not path:
            raise MigrationFailed(f"{other.name} and {path.name} have the same version")
    return files


@asynccontextmanager
async def _executed(
    connection: Session, path: Path, direction: Literal["up", "down"]
) -> AsyncIterator[None]:
    """Execute a part of a migration, and then what records it, in its transaction if it has one.

    Raises MigrationFailed, with the name of the file, if PostgreSQL refuses it.
    """
    statements, in_transaction = _part(path, direction)
    try:
        async with connection.transaction() if in_transaction else nullcontext():
            await connection.execute(statements.encode())
            yield
    except psycopg.Error as error:
        raise MigrationFailed(f"{path.name}: {error}") from error


def _part(path: Path, direction: Literal["up", "down"]) -> tuple[str, bool]:
    """Return the statements of a direction, and whether they are a transaction."""
    up, marker, part = path.read_text("utf-8").partition("-- migrate:down")
    if direction == "up":
        _, marker, part = up.partition("-- migrate:up")
    if not marker:
        raise MigrationFailed(f"{path.name} has no line `-- migrate:{direction}`")
    options, _, statements = part.partition("\n")
    return statements, "transaction:false" not in options.split()


if __name__ == "__main__":
    main()
