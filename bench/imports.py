"""`python -m bench.imports`: how fast the client imports, compared with the benchmark's batches.

The limit is the benchmark's load of batches of 100 by gRPC with 16 in flight, for one organization,
before and after each import into another one. All rows have an id, a start and an end, as the
benchmark's have.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import click

from bench.generators import driver
from bench.measured import GOOD
from bench.stack import database, stack
from bench.workload import BATCH, FIRST_DAY, Workload
from local.programs import ROOT
from local.stack import base_environment

IN_FLIGHT = 16


def _row(number: int) -> tuple[str, datetime, datetime]:
    start = FIRST_DAY + 2 * number
    return str(number), datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(start + 1, UTC)


def _json_lines(rows: int) -> Iterator[str]:
    for name, start, end in map(_row, range(rows)):
        yield json.dumps({"id": name, "start": start.isoformat(), "end": end.isoformat()}) + "\n"


def _csv(rows: int) -> Iterator[str]:
    yield "id,start,end\n"
    for name, start, end in map(_row, range(rows)):
        yield f"{name},{start.isoformat()},{end.isoformat()}\n"


def _calendar(rows: int) -> Iterator[str]:
    yield "BEGIN:VCALENDAR\r\n"
    for name, start, end in map(_row, range(rows)):
        yield f"BEGIN:VEVENT\r\nUID:{name}\r\nDTSTART:{start:%Y%m%dT%H%M%SZ}\r\n"
        yield f"DTEND:{end:%Y%m%dT%H%M%SZ}\r\nEND:VEVENT\r\n"
    yield "END:VCALENDAR\r\n"


FORMATS: Mapping[str, Callable[[int], Iterator[str]]] = {
    "jsonl": _json_lines,
    "csv": _csv,
    "ics": _calendar,
}


def batches_per_second(address: str, organization: str, seconds: float) -> float:
    """Return how many appointments the benchmark's batches write in a second."""
    work = Workload(operation="batch", organization=organization)
    measured = driver(address, work, protocol="grpc", callers=IN_FLIGHT, seconds=seconds)
    return measured.per_second(GOOD) * BATCH


def imported_per_second(address: str, organization: str, file: Path, rows: int) -> float:
    """Return how many appointments the client imports in a second, its start included."""
    place = ("--address", address, "--organization", organization)
    begun = time.perf_counter()
    said = subprocess.run(
        [sys.executable, "-m", "client", "import", file, *place],
        cwd=ROOT,
        env=base_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    seconds = time.perf_counter() - begun
    if said != f"{rows:,} CREATED\n":
        raise RuntimeError(said)
    return rows / seconds


@click.command()
@click.option("--rows", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=6, show_default=True)
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), default="jsonl")
def main(*, rows: int, rounds: int, seconds: float, format_: str) -> None:
    """Measure the import of a file."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="imports-", dir=data) as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        file = directory / f"rows.{format_}"
        with file.open("w", newline="") as written:
            written.writelines(FORMATS[format_](rows))
        ratios = []
        with database(directory) as (url, postgres), stack(url, postgres, {}, directory) as running:
            for number in range(rounds):
                before = batches_per_second(running.service, f"before-{number}", seconds)
                imported = imported_per_second(running.service, f"import-{number}", file, rows)
                after = batches_per_second(running.service, f"after-{number}", seconds)
                ratios.append(2 * imported / (before + after))
                click.echo(
                    f"{imported:,.0f} imported a second, {before:,.0f} and {after:,.0f} by batches:"
                    f" {ratios[-1]:.2f}"
                )
        click.echo(f"{rows:,} rows of {format_}: {median(ratios):.2f} of the batch rate")


if __name__ == "__main__":
    main()
