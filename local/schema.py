"""`python -m local.schema dump` and `... migration NAME`: keep the schema files up to date.

`migrations/functions.sql` is edited by hand. `migration` writes the migration that replaces the
functions of a migrated database with those of this file. `migrations/schema.sql` (tables,
indexes, constraints, privileges) is for reading only. `dump` writes it from a migrated database.
Both commands start their own server. tests/postgres/test_schema.py compares both files with a
migrated database.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import psycopg

from local.postgres import NOT_DURABLE, EmbeddedPostgres, migrate, programs_directory
from local.programs import ROOT, StartError

MIGRATIONS = ROOT / "migrations"
FUNCTIONS = MIGRATIONS / "functions.sql"
SCHEMA = MIGRATIONS / "schema.sql"

SCHEMA_HEAD = """\
-- The tables, indexes, constraints and privileges after all migrations, for reading only.
-- `make schema` writes this file. Comments are in the migrations.
"""

# The start of a function in functions.sql: its comment and CREATE FUNCTION.
_BLOCK = re.compile(r"^(?:--.*\n)*CREATE FUNCTION (\w+)", re.MULTILINE)
_HEADING = re.compile(r"(?:\n\n(?:--.*\n?)+)$")

# Statements that follow each other without an empty line in schema.sql.
_LISTED = "(?:GRANT|CREATE INDEX|CREATE UNIQUE INDEX)"

# All functions except those of extensions.
_FUNCTIONS = """
    SELECT
        p.oid::regprocedure::text, p.proname,
        concat_ws(' ', pg_get_function_arguments(p.oid), '->', pg_get_function_result(p.oid)),
        pg_get_functiondef(p.oid),
        EXISTS (
            SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner)))
            WHERE grantee = 0
        ),
        array(
            SELECT grantee::regrole::text
            FROM aclexplode(p.proacl)
            WHERE grantee NOT IN (0, p.proowner)
            ORDER BY 1
        ),
        array(
            SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE t.tgfoid = p.oid ORDER BY 1
        )
    FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
"""


@dataclass(frozen=True, slots=True)
class Function:
    """A function as read from the catalogs. `identity` is its name and argument types."""

    identity: str
    name: str
    signature: str
    definition: str
    public: bool
    granted_to: list[str]
    triggers: list[str]

    def create(self) -> str:
        """Return the statements that create it, with its privileges."""
        lines = [self.definition.rstrip() + ";", ""]
        if not self.public:
            lines.append(f"REVOKE ALL ON FUNCTION {self.identity} FROM PUBLIC;")
        lines += [
            f"GRANT EXECUTE ON FUNCTION {self.identity} TO {role};" for role in self.granted_to
        ]
        return "\n".join(lines)

    def drop(self) -> str:
        """Return the statement that drops it."""
        return f"DROP FUNCTION {self.identity};"

    def kept(self) -> tuple[object, ...]:
        """Return the properties that CREATE OR REPLACE keeps or cannot change."""
        return self.signature, self.public, self.granted_to


@dataclass(frozen=True, slots=True)
class Difference:
    """A function before and after a change of functions.sql, None if it does not exist."""

    before: Function | None
    after: Function | None

    @property
    def replaces(self) -> bool:
        """Whether CREATE OR REPLACE suffices, as signature and privileges do not change."""
        if self.before is None or self.after is None:
            return False
        return self.before.kept() == self.after.kept()


def differences(url: str, wanted: str) -> list[Difference]:
    """Compare a migrated database with functions.sql. The database is not changed."""
    with psycopg.connect(url) as connection:
        have = read_functions(connection)
        # A function may read a column that the new migration will add.
        connection.execute("SET LOCAL check_function_bodies = off")
        for function in have.values():
            connection.execute(f"DROP FUNCTION {function.identity} CASCADE".encode())
        connection.execute(wanted.encode())
        to = read_functions(connection)
        connection.rollback()
    return [
        Difference(have.get(identity), to.get(identity))
        for identity in {**have, **to}
        if have.get(identity) != to.get(identity)
    ]


def read_functions(connection: psycopg.Connection) -> dict[str, Function]:
    return {row[0]: Function(*row) for row in connection.execute(_FUNCTIONS)}


def blocks_of(text: str) -> dict[str, str]:
    """Return the text of each function in functions.sql, with its comment, by name."""
    found = list(_BLOCK.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {
        match[1]: _HEADING.sub("", text[match.start() : end].rstrip())
        for match, end in zip(found, ends, strict=False)  # there may be none
    }


def migration(changes: list[Difference], wanted: str) -> str:
    """Return the text of a migration that makes the changes, and of the way back."""
    up: list[str] = []
    down: list[str] = []
    for change in changes:
        if change.before and not change.replaces:
            up.append(change.before.drop())
        if change.after and not change.replaces:
            down.append(change.after.drop())
    names = {change.after.name for change in changes if change.after}
    replaced = {change.after.name for change in changes if change.after and change.replaces}
    for name, block in blocks_of(wanted).items():
        if name in replaced:
            up.append(block.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
        elif name in names:
            up.append(block)
    down += [change.before.create() for change in changes if change.before]
    head = (
        "-- Other sessions queue behind a waiting lock request. Fail instead; run it again then."
        "\nSET LOCAL lock_timeout = '2s';"
    )
    return "\n\n".join(["-- migrate:up", head, *up, "-- migrate:down", head, *down]) + "\n"


def dump(url: str) -> str:
    """Return schema.sql of a migrated database."""
    programs = programs_directory()
    with tempfile.TemporaryDirectory() as directory:
        archive, listing = Path(directory) / "archive", Path(directory) / "listing"
        run = [str(programs / "pg_dump"), "--schema-only", "--exclude-table=schema_migrations"]
        _output(*run, "--format=custom", f"--file={archive}", url)
        restore = [str(programs / "pg_restore"), "--no-owner", str(archive)]
        entries = _output(*restore, "--list").splitlines(keepends=True)
        left_out = re.compile(" (FUNCTION|TRIGGER|COMMENT) ")
        listing.write_text("".join(entry for entry in entries if not left_out.search(entry)))
        text = _output(*restore, f"--use-list={listing}", "--file=-")
    # Remove session settings and comments, which differ between versions of pg_dump.
    text = re.sub(r"^(?:--|SET |SELECT pg_catalog|\\).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    text = re.sub(rf"^({_LISTED}.*)\n\n(?={_LISTED})", r"\1\n", text, flags=re.MULTILINE)
    return f"{SCHEMA_HEAD}\n{text}\n"


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def _migrated_database() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="appointments-") as directory,
        EmbeddedPostgres(Path(directory) / "postgres", NOT_DURABLE) as server,
    ):
        url = server.create_database("appointments")
        migrate(url)
        yield url


@click.group()
def main() -> None:
    """Keep the migrations and the schema files consistent."""


@main.command("dump")
def _dump() -> None:
    """Write migrations/schema.sql from the migrations."""
    with _migrated_database() as url:
        SCHEMA.write_text(dump(url))


@main.command("migration")
@click.argument("name")
def _migration(name: str) -> None:
    """Write the migration that brings a database to the state of migrations/functions.sql."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        sys.exit("NAME: small letters, digits and underscores, such as NAME=add_location")
    wanted = FUNCTIONS.read_text()
    with _migrated_database() as url:
        changes = differences(url, wanted)
    version = f"{datetime.now(UTC):%Y%m%d%H%M%S}"
    path = MIGRATIONS / f"{version}_{name}.sql"
    path.write_text(migration(changes, wanted))
    click.echo(
        f"{path.relative_to(ROOT)} changes {len(changes)} functions. Now:\n"
        "- add changes of tables, before the functions, and the way back\n"
        f'- add "{version}" to NEEDED_MIGRATIONS in service/postgres/schema.py\n'
        "- make schema"
    )


if __name__ == "__main__":
    try:
        main()
    except StartError as error:
        sys.exit(f"error: {error}")
