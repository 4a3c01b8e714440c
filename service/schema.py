"""Whether the database has the tables and functions that this code needs."""

from pathlib import Path

import psycopg

MIGRATIONS = Path(__file__).parent.parent / "migrations"


class SchemaOutdated(Exception):
    """The database lacks migrations, or is not one of ours at all."""


async def check_schema(url: str) -> None:
    """Raise SchemaOutdated if a migration of this version is not applied.

    Raises psycopg.OperationalError if the database cannot be reached.
    """
    wanted = {path.name.partition("_")[0] for path in MIGRATIONS.glob("*.sql")}
    async with await psycopg.AsyncConnection.connect(url, connect_timeout=5) as connection:
        cursor = await connection.execute("SELECT to_regclass('schema_migrations')")
        if await cursor.fetchone() == (None,):
            missing = wanted
        else:
            cursor = await connection.execute("SELECT version FROM schema_migrations")
            missing = wanted - {version for (version,) in await cursor.fetchall()}
    if missing:
        raise SchemaOutdated(
            f"the database lacks the migration {min(missing)} ({len(missing)} of {len(wanted)}"
            " are missing); run 'make migrate' first"
        )
