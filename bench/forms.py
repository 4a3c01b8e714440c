"""`python -m bench.forms`: measure the cost of different result types of apply_writes.

The other functions are made by editing the text of apply_writes, so that nothing else
differs. All run alternately on one server: single writes, then batches. Figures are the CPU
time of the server process and of this process, which does not include waiting. Ratios are
medians of the ratios of the rounds.
"""

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, LiteralString

import click
import orjson
import psycopg

from bench.workload import FIRST_DAY
from local.postgres import NOT_DURABLE, EmbeddedPostgres, migrate
from service.domain import Appointment, State
from service.postgres import rows
from service.postgres.rows import Row
from service.postgres.session import (
    CALLER_ROLE,
    Timeouts,
    plain_conninfo,
    session_settings,
    with_settings,
)
from service.writes.store import APPLIED

# Writes per call: calls per round.
BATCHES = {1: 400, 32: 25}

_HEAD: LiteralString = "outcome, organization_revision, lock_wait, conflicts, alternatives"
_RESULT = "appointment appointments)"
_STORED = "stored ALIAS FOR appointment;"
_OUTCOME = "v_outcome ALIAS FOR outcome;"
_RETURNED = "RETURN NEXT;"

_NAMES = [column.partition("::")[0] for column in rows.APPOINTMENT.split(", ")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to return appointments: the statement, and the conversion of its rows."""

    title: str
    statement: str
    read: Callable[[str, Row], Appointment]


def make_forms(url: str) -> list[Form]:
    """Create the functions of all forms in a migrated database. The first is the reference."""
    with psycopg.connect(url) as connection:
        [(adopted,)] = connection.execute(
            "SELECT pg_get_functiondef('apply_writes'::regproc)"
        ).fetchall()
        types = connection.execute(
            "SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'appointments'::regclass AND attname = ANY (%s)"
            " ORDER BY array_position(%s::name[], attname)",
            (_NAMES, _NAMES),
        ).fetchall()
        columns = ", ".join(column for (column,) in types)
        values = ", ".join(f"stored.{name}" for name in _NAMES)
        flat = edited(_queried(adopted, values), {_RESULT: f"{columns})"})
        start, end = flat.index("TABLE("), flat.index("\n LANGUAGE")
        # A function that returns a composite type has no variables of the result's columns.
        head = flat[start + len("TABLE(") : flat.index(columns, start)].replace(", ", "; ")
        composite = edited(
            flat[:start] + "SETOF write_result" + flat[end:], {_OUTCOME: head + _OUTCOME}
        )
        json = edited(_queried(adopted, "row_to_json(stored)"), {_RESULT: "appointment json)"})
        key = "organization_lock_key(p_organization_id)"
        seed = edited(adopted, {key: "hashtextextended(p_organization_id, 7236001)"})
        connection.execute(f"CREATE TYPE write_result AS {flat[start + 5 : end]}".encode())
        for name, text in {
            "columns": flat,
            "type": composite,
            "json": json,
            "query": _queried(adopted, "stored"),
            "seed": seed,
        }.items():
            named = edited(text, {".apply_writes(": f".apply_writes_{name}("})
            connection.execute(named.encode())

    def form(title: str, name: str, columns: str) -> Form:
        statement = f"SELECT {columns} FROM apply_writes{name}(%s::text, %s::json)"
        return Form(title=title, statement=statement, read=_read)

    return [
        form("columns", "_columns", f"{_HEAD}, {rows.APPOINTMENT}"),
        form("row of the table", "", APPLIED),
        form("row of the table, by RETURN QUERY", "_query", APPLIED),
        form("composite type of columns", "_type", f"{_HEAD}, {rows.APPOINTMENT}"),
        Form(
            title="JSON",
            statement=f"SELECT {_HEAD}, appointment::text"
            " FROM apply_writes_json(%s::text, %s::json)",
            read=_read_json,
        ),
        form("row of the table, seed of the lock in place", "_seed", APPLIED),
    ]


def _queried(text: str, values: str) -> str:
    """Return rows by a query for `values` instead of by RETURN NEXT."""
    text = edited(text, {_STORED: "stored appointments%ROWTYPE;"})
    return text.replace(_RETURNED, f"RETURN QUERY SELECT {_HEAD}, {values};")


def edited(text: str, replacements: Mapping[str, str]) -> str:
    """Replace texts that must occur exactly once. Raises ValueError otherwise."""
    for old, new in replacements.items():
        if text.count(old) != 1:
            raise ValueError(f"apply_writes has {text.count(old)} times {old!r}")
        text = text.replace(old, new)
    return text


def _read(organization_id: str, row: Row) -> Appointment:
    return rows.appointment(organization_id, row[5:], epoch="")


def _read_json(organization_id: str, row: Row) -> Appointment:
    found: dict[str, Any] = orjson.loads(row[5])
    return Appointment(
        organization_id=organization_id,
        id=found["appointment_id"],
        resource_id=found["resource_id"],
        additional_resource_ids=tuple(found["additional_resource_ids"] or ()),
        start=datetime.fromisoformat(found["start_time"]),
        end=datetime.fromisoformat(found["end_time"]),
        title=found["title"],
        # Parsed and printed again. A service would need the original text in another column.
        attributes=orjson.dumps(found["attributes"]).decode(),
        created_at=datetime.fromisoformat(found["created_at"]),
        updated_at=datetime.fromisoformat(found["updated_at"]),
        hold_until=None,
        state=State(found["state"]),
        version=found["version"],
        revision=found["revision"],
        epoch="",
    )


class Writer:
    """Writes new appointments in one form, on its own connection."""

    def __init__(self, form: Form, connection: psycopg.Connection) -> None:
        self._form = form
        self._connection = connection
        self._begin()

    def _begin(self) -> None:
        """Continue in a new organization.

        Its id is random, because the cost of inserting into the indexes depends on its
        position among the other ids.
        """
        self._organization = secrets.token_hex(8)
        self._written = 0

    def write(self, size: int) -> list[Appointment]:
        """Create `size` appointments in one call."""
        numbers = range(self._written, self._written + size)
        self._written += size
        writes = orjson.dumps([_write(number) for number in numbers]).decode()
        found = self._connection.execute(
            self._form.statement.encode(), (self._organization, writes)
        ).fetchall()
        return [self._form.read(self._organization, row) for row in found]

    def measure(self, size: int, calls: int) -> tuple[float, float]:
        """Return the CPU time per write in microseconds, of the server and of this process."""
        self._begin()
        server, here = self._server_time(), time.thread_time_ns()
        for _ in range(calls):
            self.write(size)
        spent = (self._server_time() - server, time.thread_time_ns() - here)
        return spent[0] / (calls * size) / 1000, spent[1] / (calls * size) / 1000

    def _server_time(self) -> int:
        """Return the CPU time of the connection's server process in nanoseconds (Linux)."""
        statistics = Path(f"/proc/{self._connection.info.backend_pid}/schedstat")
        return int(statistics.read_text().split()[0])


def _write(number: int) -> dict[str, object]:
    start = FIRST_DAY + number * 60
    return {
        "kind": "UPSERT",
        "id": f"appointment-{number}",
        "resource_id": "room",
        "start_time": datetime.fromtimestamp(start, UTC),
        "end_time": datetime.fromtimestamp(start + 60, UTC),
        "title": "A title of the usual length",
        "attributes": {"room": 3, "note": "some text"},
        "create_only": False,
        "actor": "",
        "validate_only": False,
    }


@contextmanager
def writers(url: str) -> Iterator[dict[str, Writer]]:
    """A writer for each form, with sessions that are set as the service's are."""
    timeouts = Timeouts(connection=5.0, lock=2.0, statement=5.0)
    conninfo = with_settings(
        plain_conninfo(url, replica=False), session_settings(timeouts, role=CALLER_ROLE)
    )
    connections = []
    made = {}
    try:
        for form in make_forms(url):
            connections.append(psycopg.connect(conninfo, autocommit=True, prepare_threshold=0))
            made[form.title] = Writer(form, connections[-1])
        yield made
    finally:
        for connection in connections:
            connection.close()


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
def main(rounds: int) -> None:
    """Measure the forms of apply_writes' result against each other."""
    with (
        tempfile.TemporaryDirectory(prefix="appointments-") as directory,
        EmbeddedPostgres(Path(directory) / "postgres", NOT_DURABLE) as server,
    ):
        url = server.create_database("appointments")
        migrate(url)
        with writers(url) as made:
            for size, calls in BATCHES.items():
                click.echo(f"{size} writes a call, {rounds} rounds of {calls} calls")
                for line in _compare(made, size, calls, rounds):
                    click.echo(f"  {line}")


def _compare(made: Mapping[str, Writer], size: int, calls: int, rounds: int) -> Iterator[str]:
    found: dict[str, list[tuple[float, float]]] = {title: [] for title in made}
    titles = list(made)
    for turn in range(-1, rounds):
        # Each comes first as often as the others.
        first = turn % len(titles)
        for title in titles[first:] + titles[:first]:
            measured = made[title].measure(size, calls)
            if turn >= 0:  # plans are made in the first
                found[title].append(measured)
    yardstick = found[titles[0]]
    for title, each in found.items():
        server, here = (median(part) for part in zip(*each, strict=True))
        ratio = median(a / b for (a, _), (b, _) in zip(each, yardstick, strict=True))
        total = median(sum(a) / sum(b) for a, b in zip(each, yardstick, strict=True))
        yield (
            f"{title:45} PostgreSQL {server:6.1f} µs ({ratio:.3f})"
            f"  Python {here:6.1f} µs  both ({total:.3f})"
        )


if __name__ == "__main__":
    main()
