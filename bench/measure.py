"""Runs the loads and limits of a group alternately."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from bench.generators import driver, pgbench, wrk
from bench.measured import Latency, Measured
from bench.plan import Group, Load
from bench.stack import Stack
from bench.stored import preload
from bench.workload import Workload

# Seconds to wait after a refusal, as in Retry-After and RetryInfo.
PAUSE = 1.0
NUMBERS = 1_000_000  # reserved for each run, more than it can use


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a load, with the CPU seconds of each process during the run.

    `delays` is the time from acceptance to result of asynchronous writes, if measured.
    """

    load: Load
    organization: str
    measured: Measured
    cpu_seconds: dict[str, float]
    delays: Latency | None = None


def warm_up(stack: Stack) -> None:
    """Open connections and fill caches before the measurement."""
    work = Workload(operation="upsert", organization="warm-up")
    for address, protocol in ((stack.service, "grpc"), (stack.gateway, "http")):
        driver(address, work, protocol=protocol, callers=16, seconds=0.5)


def runs(group: Group, stack: Stack, *, rounds: int, seconds: int) -> Iterator[Run]:
    """Run each limit and load of the group once per round.

    Loads on stored appointments share organizations; all others use new ones.
    """
    shared = f"{uuid.uuid4()}"
    stored = {
        (load.organizations, load.stored, load.resources) for load in group.loads if load.stored
    }
    for organizations, number, resources in stored:
        preload(
            stack.database_url,
            shared,
            organizations=organizations,
            stored=number,
            resources=resources,
        )
    first = 0
    for _ in range(rounds):
        for load in (*group.limits, *group.loads):
            work = Workload(
                operation=load.operation,
                organization=shared if load.stored else f"{uuid.uuid4()}",
                organizations=load.organizations,
                stored=load.stored or 1,
                first=first,
                resources=load.resources,
            )
            first += NUMBERS
            yield run(load, work, stack, seconds)


def run(
    load: Load, work: Workload, stack: Stack, seconds: int, *, rate: float | None = None
) -> Run:
    """Run a load. `rate` limits the calls per second by gRPC."""
    before = stack.cpu_seconds()
    measured = _generate(load, work, stack, seconds, rate)
    return Run(
        load=load,
        organization=work.organization,
        measured=measured,
        cpu_seconds=stack.cpu_seconds_since(before),
    )


def _generate(
    load: Load, work: Workload, stack: Stack, seconds: int, rate: float | None
) -> Measured:
    match load.interface:
        case "SQL":
            return pgbench(stack.database_url, work, clients=load.in_flight, seconds=seconds)
        case "REST" if not load.polite:
            return wrk(stack.gateway, work, connections=load.in_flight, seconds=seconds)
        case _:
            pause = PAUSE if load.polite else 0.0
            return driver(
                stack.service if load.interface == "gRPC" else stack.gateway,
                work,
                protocol="grpc" if load.interface == "gRPC" else "http",
                callers=load.in_flight,
                # Callers start spread over one pause, and end within another.
                seconds=seconds + 2 * pause,
                pause=pause,
                rate=rate,
            )
