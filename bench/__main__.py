"""`python -m bench`: measure, print one table, write the same as JSON.

On an embedded PostgreSQL with its durability on, and a service of its own. The limit and
what is measured against it run in turn, so the ratio holds when the machine's speed
drifts; the load comes from the same machine.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from bench.limit import writes_per_second
from scripts.postgres import EmbeddedPostgres, migrate
from scripts.programs import ROOT, Program
from scripts.stack import ANY_PORT, DATABASE, base_environment

LIMIT_CLIENTS = 16
SETTINGS = {"max_connections": "200"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure; times in milliseconds, CPU in microseconds a request."""

    load: str
    in_flight: int
    per_second: float
    limit_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: dict[str, int]
    service_us: float
    postgres_us: float
    driver_us: float
    service_peak_mib: float

    @property
    def ratio(self) -> float:
        return self.per_second / self.limit_per_second


@click.command()
@click.option("--seconds", default=10.0, show_default=True, help="Length of each measurement.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the results there.")
def main(seconds: float, path: Path | None) -> None:
    """Measure gRPC upserts against pgbench with one write a transaction."""
    rows = []
    with _running() as (postgres, service, directory):
        url = postgres.url(DATABASE)
        for load, organizations in (("hot organization", 1), ("1,000 organizations", 1000)):
            for in_flight in (1, 64):
                limit = writes_per_second(
                    url,
                    directory,
                    clients=min(in_flight, LIMIT_CLIENTS),
                    organizations=organizations,
                    seconds=seconds,
                )
                rows.append(
                    _measure(postgres, service, load, organizations, in_flight, limit, seconds)
                )
                Console(stderr=True).print(f"{load}, {in_flight} in flight: {rows[-1].ratio:.2f}")
    _show(rows)
    if path is not None:
        path.write_text(json.dumps({"machine": _machine(), "rows": [asdict(row) for row in rows]}))


@contextmanager
def _running() -> Iterator[tuple[EmbeddedPostgres, Program, Path]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        with EmbeddedPostgres(directory / "postgres", SETTINGS) as postgres:
            url = postgres.create_database(DATABASE)
            migrate(url)
            service = Program("service", {**base_environment(), **ANY_PORT, "DATABASE_URL": url})
            try:
                yield postgres, service.wait_until_listening(), directory
            finally:
                service.stop()


def _measure(
    postgres: EmbeddedPostgres,
    service: Program,
    load: str,
    organizations: int,
    in_flight: int,
    limit: float,
    seconds: float,
) -> Row:
    before = _cpu_seconds(service.process.pid), _cpu_seconds(postgres.pid)
    driver = [sys.executable, "-m", "bench.driver"]
    done = subprocess.run(
        [*driver, service.address, str(in_flight), str(seconds), str(organizations)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    after = _cpu_seconds(service.process.pid), _cpu_seconds(postgres.pid)
    result: dict[str, Any] = json.loads(done.stdout)
    requests = result.pop("requests")
    service_us, postgres_us = (
        (later - earlier) / requests * 1e6 for earlier, later in zip(before, after, strict=True)
    )
    return Row(
        load=load,
        in_flight=in_flight,
        limit_per_second=limit,
        service_us=service_us,
        postgres_us=postgres_us,
        service_peak_mib=_peak_mib(service.process.pid),
        **result,
    )


def _cpu_seconds(pid: int | None) -> float:
    """CPU time of a process and its children, ended ones included."""
    process = psutil.Process(pid)
    own = process.cpu_times()
    living = (child.cpu_times() for child in process.children(recursive=True))
    return float(
        own.user
        + own.system
        + own.children_user
        + own.children_system
        + sum(times.user + times.system for times in living)
    )


def _peak_mib(pid: int) -> float:
    """The most memory that a process ever held, from the kernel's own account."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {platform.system()}"
    )


def _show(rows: list[Row]) -> None:
    table = Table(title=f"gRPC upserts against pgbench, one write a transaction ({_machine()})")
    for name in (
        "load",
        "in flight",
        "per second",
        "limit",
        "ratio",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "errors",
        "service us",
        "postgres us",
        "driver us",
        "service peak MiB",
    ):
        table.add_column(name, justify="left" if name == "load" else "right")
    for row in rows:
        errors = ", ".join(f"{count} {code}" for code, count in row.errors.items()) or "none"
        table.add_row(
            row.load,
            str(row.in_flight),
            f"{row.per_second:,.0f}",
            f"{row.limit_per_second:,.0f}",
            f"{row.ratio:.2f}",
            f"{row.p50_ms:.1f}",
            f"{row.p95_ms:.1f}",
            f"{row.p99_ms:.1f}",
            errors,
            f"{row.service_us:.0f}",
            f"{row.postgres_us:.0f}",
            f"{row.driver_us:.0f}",
            f"{row.service_peak_mib:.0f}",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
