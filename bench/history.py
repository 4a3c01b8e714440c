"""`python -m bench.history`: what lists of the past cost, next to the same lists of today.

One organization with 50 resources: every second change is a new appointment, and every other
changes the title of an earlier one, moves it or cancels it. Then lists of 20 as of the half of the
changes and of today take turns. Prints the median time of the statements as the service sees it,
and the ratio of the past to today: the median of the rounds' own.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, LiteralString

import click
import psycopg

from bench.stack import database
from bench.workload import DAY, FIRST_DAY, HOUR
from local.programs import ROOT
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.rows import Row
from service.postgres.session import CALLER_ROLE, Timeouts
from service.reads.store import ReadStore
from service.reads.window import Window

ORGANIZATION = "history"
RESOURCES = 50
LISTED = 20
BATCH = 1_000
"""Writes of one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A list of the state as of a revision, or of today."""

    title: str
    read: Callable[[int | None], Awaitable[object]]


class TimedDatabase(Database):
    """Adds up the seconds of its statements."""

    spent = 0.0

    async def fetch_across(
        self,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        begun = time.perf_counter()
        try:
            return await super().fetch_across(statement, parameters, raw=raw)
        finally:
            self.spent += time.perf_counter() - begun


def _writes(changes: int) -> Iterator[dict[str, Any]]:
    """Return the writes that make the changes, in their order."""
    random = Random(0)  # noqa: S311  # the same in every run
    # Appointments are made in no order of their starts.
    slots = random.sample(range((changes + 1) // 2), (changes + 1) // 2)
    moves = [0] * len(slots)
    cancelled: set[int] = set()
    for revision in range(changes):
        number = revision // 2 if revision % 2 == 0 else random.randrange(revision // 2 + 1)
        common = {"id": f"appointment-{number}", "actor": "", "validate_only": False}
        kind = random.random() if revision % 2 else 0.0
        if kind > 0.9 and number not in cancelled:
            cancelled.add(number)
            yield {"kind": "CANCEL", **common}
            continue
        cancelled.discard(number)
        if kind > 0.7:
            moves[number] += 1
        begin = start_of(slots[number]) + moves[number] % 2 * HOUR // 2
        yield {
            "kind": "UPSERT",
            **common,
            "resource_id": f"resource-{slots[number] % RESOURCES}",
            "start_time": str(_time(begin)),
            "end_time": str(_time(begin + HOUR // 2)),
            "title": f"title {revision}",
            "attributes": {"note": "some text"},
            "create_only": False,
        }


def start_of(slot: int) -> int:
    return FIRST_DAY + slot // RESOURCES * HOUR


def _time(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def load(url: str, changes: int) -> None:
    """Make the changes by the service's SQL function. Raises RuntimeError if one is refused."""
    with psycopg.connect(url, autocommit=True) as connection:
        writes = _writes(changes)
        while part := list(islice(writes, BATCH)):
            connection.execute(
                "SELECT FROM apply_writes(%s, %s::json)", (ORGANIZATION, json.dumps(part))
            )
        found = connection.execute(
            "SELECT revision FROM organizations WHERE organization_id = %s", (ORGANIZATION,)
        ).fetchall()
        if found != [(changes,)]:
            raise RuntimeError(f"{changes} changes, but revision {found}")
        connection.execute("VACUUM ANALYZE")


def lists(reads: ReadStore, changes: int) -> list[Load]:
    """Return the lists that are compared."""
    middle = start_of(changes // 4)

    def window(start: int | None, end: int | None, resource: str | None = None) -> Window:
        return Window(
            resource_id=resource,
            start=None if start is None else _time(start),
            end=None if end is None else _time(end),
            include_cancelled=False,
        )

    def by_start(window: Window) -> Callable[[int | None], Awaitable[object]]:
        return lambda as_of: reads.list(
            ORGANIZATION,
            window,
            after=None,
            limit=LISTED,
            as_of=as_of,
            at=None,
            min_revision=None,
        )

    def by_revision(after: int) -> Callable[[int | None], Awaitable[object]]:
        return lambda as_of: reads.list_by_revision(
            ORGANIZATION,
            window(None, None),
            after=after,
            limit=LISTED,
            as_of=as_of,
            at=None,
            min_revision=None,
        )

    return [
        Load(title="no window", read=by_start(window(None, None))),
        Load(title="from", read=by_start(window(middle, None))),
        Load(title="from and to", read=by_start(window(middle, middle + HOUR))),
        Load(title="one of 50 resources", read=by_start(window(None, None, "resource-7"))),
        Load(
            title="one of 50 resources, from and to",
            read=by_start(window(middle, middle + DAY, "resource-7")),
        ),
        # The first appointments have changed most often, so most of these entries are passed.
        Load(title="by revision", read=by_revision(0)),
        Load(title="by revision, from a quarter on", read=by_revision(changes // 4)),
    ]


async def compare(url: str, changes: int, rounds: int) -> list[str]:
    """Measure each list in turn with today's; return a line for each."""
    database = TimedDatabase(
        url,
        name="bench",
        connections=1,
        max_waiting=1,
        timeouts=Timeouts(connection=5, lock=5, statement=60),
        role=CALLER_ROLE,
        replica=False,
        metrics=Metrics(),
    )

    async def seconds(load: Load, as_of: int | None) -> float:
        before = database.spent
        await load.read(as_of)
        return database.spent - before

    lines = []
    async with database:
        for each in lists(ReadStore(database, None), changes):
            pairs = [
                (await seconds(each, changes // 2), await seconds(each, None))
                for _ in range(rounds + 10)
            ][10:]  # plans are made and pages read in the first
            past, today = (median(part) * 1000 for part in zip(*pairs, strict=True))
            ratio = median(past / today for past, today in pairs)
            lines.append(f"{each.title:34} {past:7.2f} ms  today {today:7.2f} ms  ({ratio:.2f})")
    return lines


@click.command()
@click.option("--changes", type=click.IntRange(4), default=1_000_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True)
def main(*, changes: int, rounds: int) -> None:
    """Measure lists of the past."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="history-", dir=data) as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        with database(directory) as (url, _):
            load(url, changes)
            for line in asyncio.run(compare(url, changes, rounds)):
                click.echo(line)


if __name__ == "__main__":
    main()
