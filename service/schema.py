"""Whether the database has the tables and functions that this code needs."""

import psycopg

# The newest migration that the code relies on; a test holds it against migrations/.
NEEDED_MIGRATION = "20261122000007"


class SchemaOutdated(Exception):
    """The database lacks migrations, or is not one of ours at all."""


async def check_schema(url: str) -> None:
    """Raise SchemaOutdated if the migration that this code needs is not applied.

    Raises psycopg.OperationalError if the database cannot be reached.
    """
    async with await psycopg.AsyncConnection.connect(url, connect_timeout=5) as connection:
        cursor = await connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL")
        applied = await cursor.fetchone() == (True,)
        if applied:
            cursor = await connection.execute(
                "SELECT 1 FROM schema_migrations WHERE version = %s", (NEEDED_MIGRATION,)
            )
            applied = await cursor.fetchone() is not None
    if not applied:
        raise SchemaOutdated(
            f"the database lacks the migration {NEEDED_MIGRATION}; run 'make migrate' first"
        )
