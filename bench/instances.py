"""`python -m bench.instances`: what it is worth that an organization's writes meet in one instance.

Two services run on one database. The same writes are sent to them in two ways, which take turns:
"together", each organization's writes to one of the services; "apart", to both alike, as clients
that use all addresses in turn do. There is no gateway. Figures are medians of the rounds, ratios
medians of the rounds' own.
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

import click

from bench.generators import driver
from bench.measured import GOOD
from bench.stack import Stack, cpu_seconds_of, database, stack
from bench.workload import Workload
from local.programs import ROOT

CALLERS = 64
ORGANIZATIONS = (2, 20, 1_000)
NUMBERS = 1_000_000  # of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    per_second: float
    cpu: float
    """Microseconds of a write, of the services and PostgreSQL."""


@contextmanager
def two_services() -> Iterator[tuple[Stack, Stack, int]]:
    """Yield two services with the process id of their PostgreSQL."""
    with ExitStack() as parts:
        directory = Path(parts.enter_context(tempfile.TemporaryDirectory(dir=ROOT / ".data")))
        url, pid = parts.enter_context(database(directory))
        places = [directory / name for name in ("one", "two")]
        for place in places:
            place.mkdir()
        settings = {"LOG_LEVEL": "error"}
        one, two = (parts.enter_context(stack(url, pid, settings, place)) for place in places)
        yield one, two, pid


def run(services: tuple[Stack, Stack], postgres: int, works: list[Workload], seconds: float) -> Run:
    """Send each of two workloads to one of the services."""
    pids = [postgres, *(service.processes["service"] for service in services)]
    before = sum(map(cpu_seconds_of, pids))
    with ThreadPoolExecutor() as pool:
        measured = list(
            pool.map(
                lambda service, work: driver(
                    service.service, work, protocol="grpc", callers=CALLERS // 2, seconds=seconds
                ),
                services,
                works,
            )
        )
    used = sum(map(cpu_seconds_of, pids)) - before
    written = sum(each.answers.get("OK", 0) for each in measured)
    return Run(per_second=sum(each.per_second(GOOD) for each in measured), cpu=used / written * 1e6)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=2.0, show_default=True)
def main(rounds: int, seconds: float) -> None:
    """Measure and print."""
    numbers = count(0, NUMBERS)
    with two_services() as (one, two, postgres):
        for organizations in ORGANIZATIONS:
            together: list[Run] = []
            apart: list[Run] = []
            for round_ in range(rounds):
                name = f"{organizations}-{round_}"
                halves = [
                    Workload(
                        operation="upsert",
                        organization=f"{name}-{half}",
                        organizations=organizations // 2,
                        first=next(numbers),
                    )
                    for half in ("a", "b")
                ]
                whole = [
                    Workload(
                        operation="upsert",
                        organization=name,
                        organizations=organizations,
                        first=next(numbers),
                    )
                    for _ in halves
                ]
                together.append(run((one, two), postgres, halves, seconds))
                apart.append(run((one, two), postgres, whole, seconds))
            pairs = list(zip(together, apart, strict=True))
            print(  # noqa: T201
                f"{organizations:5,} organizations: together"
                f" {median(each.per_second for each in together):6,.0f}/s"
                f" {median(each.cpu for each in together):4.0f} µs CPU; apart"
                f" {median(b.per_second / a.per_second for a, b in pairs):.2f} of the rate,"
                f" {median(b.cpu / a.cpu for a, b in pairs):.2f} of the CPU time"
            )


if __name__ == "__main__":
    main()
