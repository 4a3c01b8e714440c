"""`python -m bench.verify`: how long `python -m service verify` takes, and its memory.

Half of the changes are of one organization, the rest of 1,000 others. Every second change is a
new appointment, some of them holds or of two resources; every other confirms, moves, cancels or
gives a new title to an earlier one. Every second write has an idempotency key.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random

import click
import orjson
import psycopg
from psycopg import sql

from bench.stack import cpu_seconds_of, database, peak_mib
from bench.workload import FIRST_DAY, HOUR
from local.programs import ROOT
from service.domain import Cancel, Confirm, Upsert, Write
from service.writes.store import write_parameter

OTHERS = 1_000
RESOURCES = 50
BATCH = 1_000
"""Writes of one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """How a check went. CPU seconds are those of the command and of PostgreSQL."""

    seconds: float
    cpu: float
    postgres_cpu: float
    peak_mib: float
    temporary_mib: float
    output: str


def writes(changes: int) -> Iterator[Write]:
    """Return the writes of an organization, each of which is a change."""
    random = Random(0)  # noqa: S311  # the same in every run
    stored: list[Upsert] = []
    cancelled: set[int] = set()
    for number in range(changes):
        key = f"key-{number}" if number % 2 else None
        if number % 2 == 0 or not stored:
            stored.append(_new(len(stored), key))
            yield stored[-1]
            continue
        which = random.randrange(len(stored))
        before = stored[which]
        if before.hold_until is not None and which not in cancelled:
            stored[which] = replace(before, hold_until=None)
            yield Confirm(
                id=before.id,
                expected_revision=None,
                idempotency_key=key,
                validate_only=False,
                actor="bench",
            )
        elif random.random() < 0.2 and which not in cancelled:
            cancelled.add(which)
            yield Cancel(
                id=before.id,
                updated_at=None,
                expected_revision=None,
                idempotency_key=key,
                validate_only=False,
                actor="bench",
            )
        else:
            cancelled.discard(which)
            by = timedelta(minutes=30 if before.start.minute == 0 else -30)
            moved = by if random.random() < 0.5 else timedelta(0)
            stored[which] = replace(
                before,
                start=before.start + moved,
                end=before.end + moved,
                title=f"title {number}",
                hold_until=None,
                idempotency_key=key,
            )
            yield stored[which]


def _new(number: int, key: str | None) -> Upsert:
    """Return an appointment in a slot of its own, which is an hour on one or two resources."""
    start = datetime.fromtimestamp(FIRST_DAY + number // RESOURCES * HOUR, UTC)
    resource = f"resource-{number % RESOURCES}"
    return Upsert(
        id=f"appointment-{number}",
        id_given=True,
        resource_id=resource,
        additional_resource_ids=(f"room of {resource}",) if number % 10 == 3 else (),
        start=start,
        end=start + timedelta(minutes=30),
        title=f"title {number}",
        attributes='{"note":"some text"}',
        created_at=None,
        updated_at=None,
        hold_until=datetime.now(UTC) + timedelta(hours=12) if number % 10 == 5 else None,
        max_hold=timedelta(hours=24),
        expected_revision=None,
        create_only=False,
        idempotency_key=key,
        validate_only=False,
        suggest=0,
        actor="bench",
    )


def load(url: str, changes: int) -> None:
    """Make the changes by the service's SQL function. Raises RuntimeError if one is refused.

    The small organizations are copies of the first one, which saves half of the time.
    """
    each = changes // 2 // OTHERS
    sizes = {"organization-1": each, "large": changes - OTHERS * each}
    with psycopg.connect(url, autocommit=True) as connection:
        for organization, size in sizes.items():
            waiting = writes(size)
            while part := [write_parameter(write) for write in islice(waiting, BATCH)]:
                connection.execute(
                    "SELECT FROM apply_writes(%s, %s::json)",
                    (organization, orjson.dumps(part).decode()),
                )
        for table in ("appointment_history", "appointments", "organizations"):
            _copy_organization(connection, table)
        found = connection.execute("SELECT sum(revision)::bigint FROM organizations").fetchall()
        if found != [(changes,)]:
            raise RuntimeError(f"{changes} changes, but {found} revisions")
        connection.execute("VACUUM ANALYZE")


def _copy_organization(connection: psycopg.Connection, table: str) -> None:
    [(names,)] = connection.execute(
        "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 1 AND NOT attisdropped",
        (table,),
    )
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    connection.execute(
        sql.SQL(
            "INSERT INTO {table} (organization_id, {columns})"
            " SELECT 'organization-' || number, {columns}"
            " FROM {table} CROSS JOIN generate_series(2, {last}) AS number"
            " WHERE organization_id = 'organization-1'"
            " ORDER BY number"
        ).format(table=sql.Identifier(table), columns=columns, last=OTHERS)
    )


def check(url: str, postgres: int) -> Checked:
    """Run the command. Raises RuntimeError if it does not find the database sound."""
    files, cpu = _temporary_files(url), cpu_seconds_of(postgres)
    own_cpu = _cpu_of_children()
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "verify"],
        env={**os.environ, "DATABASE_URL": url},
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, peak_mib(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - begun
    output = "" if process.stdout is None else process.stdout.read()
    if process.returncode != 0:
        raise RuntimeError(output)
    return Checked(
        seconds=seconds,
        cpu=_cpu_of_children() - own_cpu,
        postgres_cpu=cpu_seconds_of(postgres) - cpu,
        peak_mib=peak,
        temporary_mib=(_temporary_files(url) - files) / 2**20,
        output=output.strip(),
    )


def _cpu_of_children() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _temporary_files(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        [(found,)] = connection.execute(
            "SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()"
        )
    number: int = found
    return number


@click.command()
@click.option("--changes", type=click.IntRange(4), default=1_000_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def main(*, changes: int, rounds: int) -> None:
    """Measure the check of a database."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=data) as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        with database(directory) as (url, postgres):
            load(url, changes)
            for _ in range(rounds):
                checked = check(url, postgres)
                click.echo(
                    f"{checked.seconds:.2f} s, CPU {checked.cpu:.2f} s and"
                    f" {checked.postgres_cpu:.2f} s of PostgreSQL,"
                    f" {checked.peak_mib:.0f} MiB of memory,"
                    f" {checked.temporary_mib:.0f} MiB of temporary files"
                )
            click.echo(checked.output)


if __name__ == "__main__":
    main()
