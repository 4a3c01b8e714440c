"""Waiting for observed conditions instead of sleeping."""

import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from local.programs import Program

# Settings of a service that waits for a lock that a test holds.
PATIENT = {"LOCK_TIMEOUT": "60", "STATEMENT_TIMEOUT": "60"}

# The seed of apply_writes' advisory locks.
LOCK_SEED = 7236001


def until(condition: Callable[[], bool], *, within: float = 20.0) -> None:
    """Return once the condition holds. Fails if it does not hold `within` some seconds."""
    give_up = time.monotonic() + within
    while not condition():
        assert time.monotonic() < give_up, f"not within {within:g} s"
        time.sleep(0.005)


class HeldLock:
    """An organization's lock, held by a transaction of the test."""

    def __init__(self, connection: psycopg.Connection, organization: str) -> None:
        self._connection = connection
        self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, %s))", (organization, LOCK_SEED)
        )

    def waiting(self) -> int:
        """Return the number of sessions that wait for this lock."""
        row = self._connection.execute(
            "SELECT count(*) FROM pg_locks AS waiting JOIN pg_locks AS held"
            " USING (locktype, classid, objid, objsubid, database)"
            " WHERE held.pid = pg_backend_pid() AND locktype = 'advisory'"
            " AND NOT waiting.granted"
        ).fetchone()
        assert row is not None
        count: int = row[0]
        return count

    def wait_for(self, count: int) -> None:
        until(lambda: self.waiting() == count)

    def release(self) -> None:
        self._connection.rollback()


@contextmanager
def held_lock(database_url: str, organization: str) -> Iterator[HeldLock]:
    """Hold an organization's lock in an open transaction, as a writer does."""
    with psycopg.connect(database_url) as connection:
        lock = HeldLock(connection, organization)
        try:
            yield lock
        finally:
            lock.release()


def metrics(program: Program) -> dict[str, float]:
    """Return the samples of a program's Prometheus metrics, by name and labels."""
    url = f"http://127.0.0.1:{program.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def metric(program: Program, name: str) -> float:
    """Return one sample, or 0 if it does not exist yet."""
    return metrics(program).get(name, 0)
