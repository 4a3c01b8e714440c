"""`python -m bench.pooler`: what PgBouncer in transaction mode costs.

Two stacks take turns on one database: one has its connections to the server itself, the other
through PgBouncer. Prints calls per second, and the CPU time of a call by program, in microseconds.
A ratio is the median of the rounds' own, to the direct connections. Needs `pgbouncer`.
"""

import sys
import tempfile
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click

from bench.measure import NUMBERS, run, warm_up
from bench.plan import Load
from bench.stack import Stack, database, stack
from bench.stored import preload
from bench.workload import Workload
from local.pgbouncer import PgBouncer, pgbouncer_program
from local.postgres import SUPERUSER
from local.programs import ROOT
from local.stack import DATABASE

# To the server. The service has as many by default.
CONNECTIONS = 8
PROGRAMS = ("service", "postgresql", "pgbouncer")
LOADS = {
    "upsert, one organization": Load(interface="gRPC", in_flight=64),
    "upsert, 1,000 organizations": Load(interface="gRPC", in_flight=64, organizations=1_000),
    "upsert, one at a time": Load(interface="gRPC", in_flight=1),
    "get": Load(interface="gRPC", in_flight=64, operation="get", organizations=100, stored=100),
}


def compare(stacks: dict[str, Stack], *, rounds: int, seconds: int) -> Iterable[str]:
    """Measure all loads in turn; yield a line per load and stack."""
    shared = f"{uuid.uuid4()}"
    first = 0
    url = next(iter(stacks.values())).database_url
    for title, load in LOADS.items():
        if load.stored:
            preload(url, shared, organizations=load.organizations, stored=load.stored, resources=1)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in stacks}
        for _ in range(rounds):
            for way, running in stacks.items():
                work = Workload(
                    operation=load.operation,
                    organization=shared if load.stored else f"{uuid.uuid4()}",
                    organizations=load.organizations,
                    stored=load.stored or 1,
                    first=first,
                )
                first += NUMBERS
                made = run(load, work, running, seconds)
                if made.measured.answers.keys() != {"OK"}:
                    sys.exit(f"error: {title}: {made.measured.answers}")
                calls = made.measured.answers["OK"]
                spent = {name: made.cpu_seconds.get(name, 0) / calls * 1e6 for name in PROGRAMS}
                found[way].append({"rate": calls / made.measured.seconds, **spent})
        yardstick = next(iter(found.values()))
        for way, measured in found.items():
            pairs = list(zip(measured, yardstick, strict=True))
            rate = median(one["rate"] / other["rate"] for one, other in pairs)
            cpu = median(
                sum(one[name] for name in PROGRAMS) / sum(other[name] for name in PROGRAMS)
                for one, other in pairs
            )
            each = "".join(
                f"  {name} {median(one[name] for one in measured):4.0f} µs" for name in PROGRAMS
            )
            yield (
                f"{title:27} {way:10} {median(one['rate'] for one in measured):7,.0f}/s"
                f" ({rate:.2f}) {each}  ({cpu:.2f})"
            )


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=2, show_default=True)
def main(*, rounds: int, seconds: int) -> None:
    """Measure calls with and without a pooler."""
    if pgbouncer_program() is None:
        sys.exit("error: pgbouncer is not installed (Debian and Ubuntu: apt install pgbouncer)")
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pooler-", dir=data) as name, ExitStack() as parts:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        url, postgres = parts.enter_context(database(directory))
        pooler = parts.enter_context(
            PgBouncer(directory / "pgbouncer", url, connections=CONNECTIONS)
        )
        stacks = {}
        for way, through in {"direct": url, "PgBouncer": pooler.url(DATABASE, SUPERUSER)}.items():
            logs = directory / way
            logs.mkdir()
            stacks[way] = parts.enter_context(stack(through, postgres, {}, logs))
            warm_up(stacks[way])
        stacks["PgBouncer"].processes["pgbouncer"] = pooler.pid
        for line in compare(stacks, rounds=rounds, seconds=seconds):
            click.echo(line)


if __name__ == "__main__":
    main()
