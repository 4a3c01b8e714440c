"""Measures asynchronous writes: how fast they are accepted and applied, and the delay."""

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import psycopg

from bench.measure import NUMBERS, Run, compared, run
from bench.measured import GOOD, Latency, Measured
from bench.plan import Group, Load
from bench.stack import Stack
from bench.workload import Workload

APPLY_TIMEOUT = 60.0  # seconds, after the last write was accepted
POLL_INTERVAL = 0.2

# The organizations of a run have names that begin with its prefix and a hyphen.
_OF_RUNS = """
    FROM unnest(%s::text[]) AS run (prefix)
    JOIN operations o
        ON o.organization_id >= run.prefix || '-' AND o.organization_id < run.prefix || '.'
"""
_COUNT = f"SELECT count(*) {_OF_RUNS}"
# All rows that one call of apply_operations wrote have the same xmin.
_ENDED = f"""
    SELECT o.outcome, o.accepted_at, o.finished_at, o.xmin::text {_OF_RUNS}
    ORDER BY o.finished_at
"""
_APPLIED = f"""
    SELECT run.prefix, count(*) {_OF_RUNS} WHERE o.outcome = 'CREATED' GROUP BY run.prefix
"""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A finished operation. Operations with the same `call` were applied together."""

    outcome: str
    accepted_at: datetime
    finished_at: datetime
    call: str


def eventual_runs(group: Group, stack: Stack, *, rounds: int, seconds: int) -> Iterator[Run]:
    """Run each limit and load of the group once per round, each in its own organizations.

    The next load with the interface "worker" applies the writes that loads accepted without
    a running worker. Loads with a running worker wait until their writes are applied. Rounds
    and seconds are halved (rounded up), because all accepted writes must also be applied.
    """
    rounds = (rounds + 1) // 2
    seconds = (seconds + 1) // 2
    first = 0
    stack.empty_servers.stop()
    for _ in range(rounds):
        waiting: list[Run] = []
        rates: dict[int, list[float]] = {}  # by the number of organizations
        for load in (*group.limits, *group.loads):
            if load.worker:
                stack.worker.start()
            else:
                stack.worker.stop()
            if load.interface == "worker":
                done = _apply(load, stack, waiting)
                waiting = []
            else:
                work = Workload(
                    operation=load.operation,
                    organization=f"{uuid.uuid4()}",
                    organizations=load.organizations,
                    first=first,
                )
                first += NUMBERS
                rate = min(rates[load.organizations]) / 2 if load.paced else None
                done = run(load, work, stack, seconds, rate=rate)
                if load.operation == "submit" and load.worker:
                    ended = _wait(stack.database_url, [done])
                    delays = [
                        (each.finished_at - each.accepted_at).total_seconds() for each in ended
                    ]
                    done = replace(done, delays=Latency.of(delays))
                elif load.operation == "submit":
                    waiting.append(done)
                if group.has_empty(load):
                    done = compared(done, work, stack, seconds)
            if load.operation == "submit" and load.interface != "REST":
                rates.setdefault(load.organizations, []).append(done.measured.per_second(GOOD))
            yield done
        stack.worker.stop()


def accepted_by(runs: Iterable[Run]) -> dict[str, int]:
    """Return the number of accepted writes by the prefix of the run."""
    return {
        run.organization: sum(run.measured.answers.get(code, 0) for code in GOOD)
        for run in runs
        if run.load.operation == "submit" and run.load.interface != "worker"
    }


def missing(url: str, accepted: Mapping[str, int]) -> int:
    """Return the number of accepted writes that were not applied."""
    with psycopg.connect(url) as connection:
        applied: dict[str, int] = dict(connection.execute(_APPLIED, [list(accepted)]).fetchall())
        [(queued,)] = connection.execute("SELECT count(*) FROM queued_operations").fetchall()
    lacking = sum(max(count - applied.get(prefix, 0), 0) for prefix, count in accepted.items())
    return max(lacking, int(queued))


def _apply(load: Load, stack: Stack, waiting: Sequence[Run]) -> Run:
    """Wait until the worker, which has just been started, has applied all accepted writes.

    The time is measured from the end of the first database call, whose start is not
    recorded, to the end of the last one, and extrapolated to all writes.
    """
    before = stack.cpu_seconds()
    ended = _wait(stack.database_url, waiting)
    spent = stack.cpu_seconds_since(before)
    first = [each for each in ended if each.call == ended[0].call]
    took = (ended[-1].finished_at - first[-1].finished_at).total_seconds()
    seconds = took * len(ended) / (len(ended) - len(first))
    outcomes = Counter("OK" if each.outcome == "CREATED" else each.outcome for each in ended)
    return Run(
        load=load,
        organization="",
        measured=Measured(
            answers=dict(outcomes), seconds=seconds, cpu_seconds=0.0, latency=Latency.of([])
        ),
        cpu_seconds=spent,
    )


def _wait(url: str, accepting: Sequence[Run]) -> list[_Ended]:
    """Wait for all operations of the runs; return them in the order of their completion."""
    accepted = accepted_by(accepting)
    deadline = time.monotonic() + APPLY_TIMEOUT
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            [(count,)] = connection.execute(_COUNT, [list(accepted)]).fetchall()
            if count >= sum(accepted.values()):
                rows = connection.execute(_ENDED, [list(accepted)]).fetchall()
                return [_Ended(*row) for row in rows]
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{sum(accepted.values())} operations were accepted,"
                    f" {count} are finished {APPLY_TIMEOUT:g} s later"
                )
            time.sleep(POLL_INTERVAL)
