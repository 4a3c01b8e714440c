"""Writes that are accepted now and applied by a worker: how fast either goes, and how late."""

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import psycopg

from bench.measure import NUMBERS, Run, run
from bench.measured import GOOD, Latency, Measured
from bench.plan import Group, Load
from bench.stack import Stack
from bench.workload import Workload

APPLIED_WITHIN = 60.0  # seconds, once nothing more is accepted
POLL_INTERVAL = 0.2

# A prefix and a minus begin the names of the organizations of a run.
_OF_RUNS = """
    FROM unnest(%s::text[]) AS run (prefix)
    JOIN operations o
        ON o.organization_id >= run.prefix || '-' AND o.organization_id < run.prefix || '.'
"""
_COUNT = f"SELECT count(*) {_OF_RUNS}"
# What a call of apply_operations wrote has the same xmin.
_ENDED = f"""
    SELECT o.outcome, o.accepted_at, o.finished_at, o.xmin::text {_OF_RUNS}
    ORDER BY o.finished_at
"""
_APPLIED = f"""
    SELECT run.prefix, count(*) {_OF_RUNS} WHERE o.outcome = 'CREATED' GROUP BY run.prefix
"""


@dataclass(frozen=True, slots=True)
class _Ended:
    """An operation that is done; those with the same `call` were applied together."""

    outcome: str
    accepted_at: datetime
    finished_at: datetime
    call: str


def eventual_runs(group: Group, stack: Stack, *, rounds: int, seconds: int) -> Iterator[Run]:
    """Run each limit and load of the group once a round, each in organizations of its own.

    What a load accepts with no worker is there for the next load by the worker; what one
    accepts beside a worker is waited for. There are half the rounds of half the time, rounded
    up: what is accepted must also be applied.
    """
    rounds = (rounds + 1) // 2
    seconds = (seconds + 1) // 2
    first = 0
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
            if load.operation == "submit" and load.interface != "REST":
                rates.setdefault(load.organizations, []).append(done.measured.per_second(GOOD))
            yield done
        stack.worker.stop()


def accepted_by(runs: Iterable[Run]) -> dict[str, int]:
    """How many writes were accepted by those of the runs that submit, by prefix."""
    return {
        run.organization: sum(run.measured.answers.get(code, 0) for code in GOOD)
        for run in runs
        if run.load.operation == "submit" and run.load.interface != "worker"
    }


def missing(url: str, accepted: Mapping[str, int]) -> int:
    """How many of the accepted writes were not applied."""
    with psycopg.connect(url) as connection:
        applied: dict[str, int] = dict(connection.execute(_APPLIED, [list(accepted)]).fetchall())
        [(queued,)] = connection.execute("SELECT count(*) FROM queued_operations").fetchall()
    lacking = sum(max(count - applied.get(prefix, 0), 0) for prefix, count in accepted.items())
    return max(lacking, int(queued))


def _apply(load: Load, stack: Stack, waiting: Sequence[Run]) -> Run:
    """Let the worker, which has just been started, apply all that was accepted.

    Its time runs from the end of the first application, whose beginning is not recorded,
    to the end of the last.
    """
    before = stack.cpu_seconds()
    ended = _wait(stack.database_url, waiting)
    spent = stack.cpu_seconds_since(before)
    first = [each for each in ended if each.call == ended[0].call]
    took = (ended[-1].finished_at - first[-1].finished_at).total_seconds()
    # As long as all of them would have taken.
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
    """Return all operations that the runs led to, in the order of their ends."""
    accepted = accepted_by(accepting)
    give_up = time.monotonic() + APPLIED_WITHIN
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            [(count,)] = connection.execute(_COUNT, [list(accepted)]).fetchall()
            if count >= sum(accepted.values()):
                rows = connection.execute(_ENDED, [list(accepted)]).fetchall()
                return [_Ended(*row) for row in rows]
            if time.monotonic() > give_up:
                raise RuntimeError(
                    f"{sum(accepted.values())} operations were accepted,"
                    f" {count} are done {APPLIED_WITHIN:g} s later"
                )
            time.sleep(POLL_INTERVAL)
