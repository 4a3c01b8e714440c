"""`migrations/migrate [--wait] [command]`: run dbmate, by default its `migrate`.

Whatever the database or its user presets, the tables are made in `public`, of a database
that keeps every character. With `--wait` a server that does not listen yet is waited for, up
to a minute. Run in the directory that `migrations` is in.
"""

import asyncio
import os
import re
import subprocess
import sys
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg.conninfo import make_conninfo

from service.postgres.schema import connect
from service.postgres.session import ENCODING, DatabaseUnfit, check_encoding

# A migration takes as long as it takes, while the connection that has the lock is idle;
# options of the user's own may still bound it.
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


def main() -> None:
    """Become dbmate; what keeps it from starting is one line on standard error."""
    url = os.environ.get("DATABASE_URL")
    if not url:
        sys.exit("DATABASE_URL is not set, as in DATABASE_URL=postgresql://user:password@host/name")
    command = sys.argv[1:]
    waiting = "--wait" in command
    command = [argument for argument in command if argument != "--wait"] or ["migrate"]
    dbmate = ["dbmate", "--migrations-dir", "migrations", "--no-dump-schema", "--migration-lock"]
    # libpq's default, so that one DATABASE_URL serves the service and dbmate alike.
    environment = {"PGSSLMODE": "prefer", **os.environ, "DATABASE_URL": with_options(url)}
    if waiting:
        waited = subprocess.run([*dbmate, "wait"], env=environment, check=False)  # noqa: S603
        if waited.returncode != 0:
            sys.exit(waited.returncode)
    try:
        asyncio.run(_check(url))
    except DatabaseUnfit as error:
        sys.exit(f"error: {error}")
    os.execvpe(dbmate[0], [*dbmate, *command], environment)  # noqa: S606  there is no shell


def with_options(url: str) -> str:
    """Return the URL with our options around those that it, or PGOPTIONS, has."""
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    given = query.get("options", [os.environ.get("PGOPTIONS", "")])[-1]
    options = [*_options(DEFAULTS), given, *_options(FIXED)]
    query["options"] = [" ".join(filter(None, options))]
    user, at, place = parts.netloc.rpartition("@")
    if ipv6 := re.fullmatch(r"\[(?P<host>.*)\](?::(?P<port>\d+))?", place):
        # dbmate loses the brackets of such a host, and then its port.
        query |= {name: [given] for name, given in ipv6.groupdict().items() if given}
        parts = parts._replace(netloc=user + at)
    return urlunsplit(parts._replace(query=urlencode(query, doseq=True, quote_via=quote)))


def _options(settings: dict[str, str]) -> list[str]:
    return [f"-c {name}={value}" for name, value in settings.items()]


async def _check(url: str) -> None:
    """Raise DatabaseUnfit. What cannot be reached is for dbmate to say."""
    try:
        conninfo = make_conninfo(
            url, client_encoding=ENCODING, connect_timeout=5, target_session_attrs="read-write"
        )
        async with await connect(conninfo) as connection:
            check_encoding(connection)
    except psycopg.Error:
        return


if __name__ == "__main__":
    main()
