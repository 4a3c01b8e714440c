"""Runs the loads and limits of a group alternately."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.generators import driver, pgbench, wrk
from bench.measured import Latency, Measured
from bench.plan import Group, Load
from bench.stack import Stack, cpu_seconds_of
from bench.stored import preload
from bench.workload import Workload

# Seconds to wait after a refusal, as in Retry-After and RetryInfo.
PAUSE = 1.0
NUMBERS = 1_000_000  # reserved for each run, more than it can use


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty:
    """The same load on an empty server, with the CPU seconds of that server."""

    measured: Measured
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a load, with the CPU seconds of each process during the run.

    `empty` is the run on an empty server right after it, if measured, and `delays` the time from
    acceptance to result of asynchronous writes.
    """

    load: Load
    organization: str
    measured: Measured
    cpu_seconds: dict[str, float]
    empty: Empty | None = None
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
    stack.empty_servers.stop()  # those of the group before answer with its responses
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
            done = run(load, work, stack, seconds)
            yield compared(done, work, stack, seconds) if group.has_empty(load) else done


def run(
    load: Load, work: Workload, stack: Stack, seconds: int, *, rate: float | None = None
) -> Run:
    """Run a load. `rate` limits the calls per second by gRPC."""
    before = stack.cpu_seconds()
    measured = _generate(load, work, _address(load, stack), seconds, rate)
    return Run(
        load=load,
        organization=work.organization,
        measured=measured,
        cpu_seconds=stack.cpu_seconds_since(before),
    )


def compared(done: Run, work: Workload, stack: Stack, seconds: int) -> Run:
    """Make the same requests to an empty server, which answers with a response of the load."""
    response = done.measured.response
    if not response:
        return done
    server = stack.empty_servers.start(done.load.interface, response)
    before = cpu_seconds_of(server.process.pid)
    measured = _generate(done.load, work, server.address, seconds, None)
    spent = cpu_seconds_of(server.process.pid) - before
    return replace(done, empty=Empty(measured=measured, cpu_seconds=spent))


def _address(load: Load, stack: Stack) -> str:
    match load.interface:
        case "SQL":
            return stack.database_url
        case "REST":
            return stack.gateway
        case _:
            return stack.service


def _generate(
    load: Load, work: Workload, address: str, seconds: int, rate: float | None
) -> Measured:
    match load.interface:
        case "SQL":
            return pgbench(address, work, clients=load.in_flight, seconds=seconds)
        case "REST" if not load.polite:
            return wrk(address, work, connections=load.in_flight, seconds=seconds)
        case _:
            pause = PAUSE if load.polite else 0.0
            return driver(
                address,
                work,
                protocol="grpc" if load.interface == "gRPC" else "http",
                callers=load.in_flight,
                # Callers start spread over one pause, and end within another.
                seconds=seconds + 2 * pause,
                pause=pause,
                rate=rate,
            )
