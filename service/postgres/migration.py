"""`migrations/migrate [--wait] [command]`: run dbmate, by default its command `migrate`.

Creates the tables in the schema `public`, whatever the presets of the database and its user,
and refuses a database whose encoding is not UTF8. `--wait` waits up to a minute for a server
that does not listen yet. Must be run in the directory that contains `migrations`.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from runtime.secrets import secret_of
from service.postgres.schema import refusing_read_only
from service.postgres.session import (
    CALLER_ROLE,
    ENCODING,
    WORKER_ROLE,
    DatabaseUnfit,
    Session,
    check_encoding,
)

# A migration has no time limit by default, nor has the idle connection that holds dbmate's
# lock meanwhile. The options of the URL or PGOPTIONS may set limits.
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
_LOCK_KEY = 7236002
# Seconds between two attempts to get it.
_LOCK_INTERVAL = 0.2


def main() -> None:
    """Execute dbmate. Errors before that are one line on standard error."""
    try:
        url = secret_of("DATABASE_URL", os.environ)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not url:
        sys.exit("DATABASE_URL is not set, as in DATABASE_URL=postgresql://user:password@host/name")
    command = sys.argv[1:]
    waiting = "--wait" in command
    command = [argument for argument in command if argument != "--wait"] or ["migrate"]
    dbmate = ["dbmate", "--migrations-dir", "migrations", "--no-dump-schema", "--migration-lock"]
    # libpq's default, so that the service and dbmate can use the same DATABASE_URL.
    environment = {"PGSSLMODE": "prefer", **os.environ, "DATABASE_URL": with_options(url)}
    if waiting:
        waited = subprocess.run([*dbmate, "wait"], env=environment, check=False)  # noqa: S603
        if waited.returncode != 0:
            sys.exit(waited.returncode)
    try:
        sys.exit(asyncio.run(_run(url, [*dbmate, *command], environment)))
    except DatabaseUnfit as error:
        sys.exit(f"error: {error}")


async def _run(url: str, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run dbmate when no other process does; returns its exit code. Raises DatabaseUnfit.

    A process that waits for dbmate's own lock keeps a snapshot, for whose end CREATE INDEX
    CONCURRENTLY waits: a deadlock. So this tries to get another lock, repeatedly.
    """
    conninfo = make_conninfo(
        url,
        client_encoding=ENCODING,
        connect_timeout=5,
        target_session_attrs="read-write",
    )
    try:
        with refusing_read_only():
            connection = await Session.connect(
                conninfo, settings={**DEFAULTS, **FIXED}, autocommit=True
            )
    except psycopg.Error:
        connection = None  # dbmate reports the error
    async with connection or nullcontext():
        if connection is not None:
            check_encoding(connection)
            await connection.require_server("migrations keep a lock over several transactions")
            await _check_roles(connection)
            while not await _locked(connection):  # noqa: ASYNC110  another process's lock
                await asyncio.sleep(_LOCK_INTERVAL)
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        return await process.wait()


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
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK_KEY])
    return await cursor.fetchone() == (True,)


def with_options(url: str) -> str:
    """Return the URL with DEFAULTS before, and FIXED after, its own options or PGOPTIONS."""
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    given = query.get("options", [os.environ.get("PGOPTIONS", "")])[-1]
    options = [*_options(DEFAULTS), given, *_options(FIXED)]
    query["options"] = [" ".join(filter(None, options))]
    user, at, address = parts.netloc.rpartition("@")
    if ipv6 := re.fullmatch(r"\[(?P<host>.*)\](?::(?P<port>\d+))?", address):
        # dbmate drops the brackets of an IPv6 address, and then loses the port.
        query |= {name: [given] for name, given in ipv6.groupdict().items() if given}
        parts = parts._replace(netloc=user + at)
    return urlunsplit(parts._replace(query=urlencode(query, doseq=True, quote_via=quote)))


def _options(settings: dict[str, str]) -> list[str]:
    return [f"-c {name}={value}" for name, value in settings.items()]


if __name__ == "__main__":
    main()
