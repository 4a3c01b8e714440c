"""`python -m bench.floor`: what it costs that PostgreSQL keeps organizations apart.

The same reads and writes of the service's stores take turns in four forms: without it; with the
views that the service uses; with the views in the function that writes, too; and with row security,
once by the policies alone. Each form has its own connection. Figures are the CPU time of a call, of
the server process and of this process, without waiting and without gRPC. Ratios are medians of the
ratios of the rounds to the form without.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, LiteralString

import click
import psycopg

from bench.forms import edited
from bench.stack import database
from bench.workload import FIRST_DAY, HOUR
from local.programs import ROOT
from service.domain import Upsert
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.rows import Row
from service.postgres.session import CALLER_ROLE, WORKER_ROLE, Timeouts
from service.reads.store import ReadStore
from service.reads.window import Window
from service.writes.store import WriteStore

HOT = "hot"
LISTED = 20
BATCH = 32

_POLICIES = """
    CREATE ROLE bench_policies NOLOGIN;
    GRANT USAGE ON SCHEMA public TO bench_policies;
    GRANT SELECT ON organizations, appointments, appointment_history TO bench_policies;
    GRANT EXECUTE ON FUNCTION apply_writes_bare, apply_batches_bare, organization_lock_key
    TO bench_policies;
    ALTER TABLE organizations ENABLE ROW LEVEL SECURITY;
    ALTER TABLE appointments ENABLE ROW LEVEL SECURITY;
    ALTER TABLE appointment_history ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON organizations TO bench_policies
    USING (organization_id = current_setting('appointments.organization', true));
    CREATE POLICY own ON appointments TO bench_policies
    USING (organization_id = current_setting('appointments.organization', true));
    CREATE POLICY own ON appointment_history TO bench_policies
    USING (organization_id = current_setting('appointments.organization', true));
    CREATE POLICY every ON organizations TO appointments_service USING (true);
    CREATE POLICY every ON appointments TO appointments_service USING (true);
    CREATE POLICY every ON appointment_history TO appointments_service USING (true);
"""

_CHECK = "    PERFORM check_organization(p_organization_id);\n"
_ENTER = "    PERFORM enter_organization(p_organization_id);\n"


class FormDatabase(Database):
    """The service's connection, whose statements call the functions of a form."""

    replaced: Mapping[str, str] = {}
    scoped = True

    async def fetch(
        self,
        organization_id: str,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        if self.scoped:
            return await super().fetch(organization_id, statement, parameters, raw=raw)
        return await self.fetch_across(statement, parameters, raw=raw)

    async def fetch_across(
        self,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        for old, new in self.replaced.items():
            statement = statement.replace(old, new)
        return await super().fetch_across(statement, parameters, raw=raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form: its role, the schemas of its tables, its functions, and whether it is for one."""

    title: str
    role: str
    search_path: str
    suffix: str
    scoped: bool


FORMS = (
    Form(title="without", role=WORKER_ROLE, search_path="public", suffix="_bare", scoped=False),
    Form(title="views", role=CALLER_ROLE, search_path="own, public", suffix="", scoped=True),
    Form(
        title="views, also in apply_writes",
        role=CALLER_ROLE,
        search_path="own, public",
        suffix="_own",
        scoped=True,
    ),
    Form(
        title="row security",
        role="bench_policies",
        search_path="public",
        suffix="_bare",
        scoped=True,
    ),
)


def prepare(url: str, organizations: int, each: int, hot: int) -> list[str]:
    """Fill the database, and make the functions and policies of the forms."""
    names = [f"organization {number}" for number in range(organizations)]
    with psycopg.connect(url, autocommit=True) as connection:
        for name, count in [(HOT, hot), *((name, each) for name in names)]:
            for first in range(0, count, 1_000):
                writes = [_stored(number) for number in range(first, min(first + 1_000, count))]
                connection.execute(
                    "SELECT FROM apply_writes(%s, %s::json)", (name, json.dumps(writes))
                )
        for function in ("apply_writes", "apply_batches"):
            [(text,)] = connection.execute(
                "SELECT pg_get_functiondef(%s::regproc)", (function,)
            ).fetchall()
            for suffix, replacements in _FUNCTIONS[function].items():
                named = edited(text, {f".{function}(": f".{function}{suffix}(", **replacements})
                connection.execute(named.encode())
                signature = "text, json, boolean" if function == "apply_writes" else "json"
                connection.execute(
                    f"GRANT EXECUTE ON FUNCTION {function}{suffix}({signature})"
                    " TO appointments_service, appointments_caller".encode()
                )
        connection.execute(_POLICIES)
        connection.execute("VACUUM ANALYZE")
    return names


_FUNCTIONS = {
    "apply_writes": {
        "_bare": {_CHECK: ""},
        "_own": {
            "'public', 'pg_temp'": "'own', 'public', 'pg_temp'",
            "appointment appointments)": "appointment public.appointments)",
            "NULL::appointments": "NULL::public.appointments",
            _CHECK: _ENTER,
        },
    },
    "apply_batches": {
        "_bare": {
            "    PERFORM require_no_organization();\n": "",
            " apply_writes(": " apply_writes_bare(",
        },
        "_own": {
            " apply_writes(": " apply_writes_own(",
            "            RETURN QUERY": (
                "            PERFORM set_config('appointments.organization', '', true);\n"
                "            RETURN QUERY"
            ),
        },
    },
}


def _stored(number: int) -> dict[str, object]:
    return {
        "kind": "UPSERT",
        "id": f"appointment-{number}",
        "resource_id": f"resource-{number % 5}",
        "start_time": str(_time(number)),
        "end_time": str(_time(number) + timedelta(hours=1)),
        "title": "A title of the usual length",
        "attributes": {"room": 3, "note": "some text"},
        "create_only": False,
        "actor": "",
        "validate_only": False,
    }


def _time(number: int) -> datetime:
    return datetime.fromtimestamp(FIRST_DAY + number * HOUR, UTC)


def _upsert(number: int, title: str) -> Upsert:
    return Upsert(
        id=f"appointment-{number}",
        resource_id=f"resource-{number % 5}",
        start=_time(number),
        end=_time(number) + timedelta(hours=1),
        title=title,
        attributes='{"note":"some text","room":3}',
        id_given=True,
        additional_resource_ids=(),
        created_at=None,
        updated_at=None,
        hold_until=None,
        max_hold=timedelta(),
        expected_revision=None,
        create_only=False,
        idempotency_key=None,
        validate_only=False,
        suggest=0,
        actor="",
    )


class Calls:
    """The calls of one form. Their arguments are the same in every form of a round."""

    def __init__(self, database: Database, names: Sequence[str], each: int) -> None:
        self._reads = ReadStore(database, None)
        self._writes = WriteStore(database, Metrics(), lambda: None)
        self._names = names
        self._each = each

    async def get(self, random: Random, _: str) -> None:
        await self._reads.get(
            random.choice(self._names), self._id(random), as_of=None, at=None, min_revision=None
        )

    async def list(self, random: Random, _: str) -> None:
        await self._list(random.choice(self._names), None)

    async def list_from(self, random: Random, _: str) -> None:
        await self._list(HOT, _time(random.randrange(1_000)))

    async def _list(self, name: str, start: datetime | None) -> None:
        window = Window(resource_id=None, start=start, end=None, include_cancelled=False)
        await self._reads.list(
            name, window, after=None, limit=LISTED, as_of=None, at=None, min_revision=None
        )

    async def upsert_hot(self, random: Random, title: str) -> None:
        await self._writes.apply(HOT, [_upsert(random.randrange(self._each), title)])

    async def batch_hot(self, random: Random, title: str) -> None:
        numbers = random.sample(range(self._each), BATCH)
        await self._writes.apply(HOT, [_upsert(number, title) for number in numbers])

    async def upsert(self, random: Random, title: str) -> None:
        number = random.randrange(self._each)
        await self._writes.apply(random.choice(self._names), [_upsert(number, title)])

    async def shared(self, random: Random, title: str) -> None:
        await self._writes.apply_batches(
            [
                (name, [_upsert(random.randrange(self._each), title)])
                for name in random.sample(self._names, BATCH)
            ]
        )

    def _id(self, random: Random) -> str:
        return f"appointment-{random.randrange(self._each)}"


# Each with the number of calls of a round.
LOADS: dict[str, tuple[Callable[[Calls, Random, str], Awaitable[None]], int]] = {
    "get": (Calls.get, 300),
    f"list of {LISTED}": (Calls.list, 200),
    f"list of {LISTED} with `from`, large organization": (Calls.list_from, 30),
    "upsert, one organization": (Calls.upsert_hot, 200),
    f"{BATCH} upserts in a call, one organization": (Calls.batch_hot, 10),
    "upsert, many organizations": (Calls.upsert, 200),
    f"{BATCH} organizations in a call, an upsert each": (Calls.shared, 10),
}


async def compare(url: str, names: Sequence[str], each: int, rounds: int) -> Iterable[str]:
    """Measure every load in all forms; return the lines to print."""
    lines = []
    async with AsyncExitStack() as stack:
        made: dict[str, tuple[Calls, int]] = {}
        for form in FORMS:
            opened = _database(url, form)
            await stack.enter_async_context(opened)
            [(pid,)] = await opened.fetch_across("SELECT pg_backend_pid()")
            await opened.fetch_across(
                "SELECT set_config('search_path', %s, false)", (form.search_path,)
            )
            made[form.title] = Calls(opened, names, each), pid
        for title, (call, calls) in LOADS.items():
            found: dict[str, list[tuple[float, float]]] = {form.title: [] for form in FORMS}
            for turn in range(-1, rounds):
                first = turn % len(FORMS)
                for form in FORMS[first:] + FORMS[:first]:
                    target, pid = made[form.title]
                    random = Random(turn)  # noqa: S311  # the same in every form
                    server, here = _server_time(pid), time.process_time_ns()
                    for number in range(calls):
                        # Not what is stored, so that every upsert is a change.
                        await call(target, random, f"{form.title} {turn} {number}")
                    spent = _server_time(pid) - server, time.process_time_ns() - here
                    if turn >= 0:  # plans are made in the first
                        found[form.title].append((spent[0] / calls / 1e3, spent[1] / calls / 1e3))
            lines.append(title)
            lines += _ratios(found)
    return lines


def _ratios(found: Mapping[str, Sequence[tuple[float, float]]]) -> Iterable[str]:
    yardstick = found[FORMS[0].title]
    for title, each in found.items():
        server, here = (median(part) for part in zip(*each, strict=True))
        ratio = median(a / b for (a, _), (b, _) in zip(each, yardstick, strict=True))
        total = median(sum(a) / sum(b) for a, b in zip(each, yardstick, strict=True))
        yield (
            f"  {title:28} PostgreSQL {server:8.1f} µs ({ratio:.2f})"
            f"  Python {here:7.1f} µs  both ({total:.2f})"
        )


def _database(url: str, form: Form) -> FormDatabase:
    database = FormDatabase(
        url,
        name=form.title,
        connections=1,
        max_waiting=1,
        timeouts=Timeouts(connection=5, lock=5, statement=60),
        role=form.role,
        replica=False,
        metrics=Metrics(),
    )
    database.scoped = form.scoped
    database.replaced = {
        f" {function}(": f" {function}{form.suffix}("
        for function in ("apply_writes", "apply_batches")
    }
    return database


def _server_time(pid: int) -> int:
    """Return the CPU time of a server process in nanoseconds (Linux)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


@click.command()
@click.option("--organizations", type=click.IntRange(BATCH), default=1_000, show_default=True)
@click.option("--each", type=click.IntRange(BATCH), default=100, show_default=True)
@click.option("--hot", type=click.IntRange(BATCH), default=20_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
def main(*, organizations: int, each: int, hot: int, rounds: int) -> None:
    """Measure the forms against each other."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="floor-", dir=data) as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        with database(directory) as (url, _):
            names = prepare(url, organizations, each, hot)
            for line in asyncio.run(compare(url, names, each, rounds)):
                click.echo(line)


if __name__ == "__main__":
    main()
