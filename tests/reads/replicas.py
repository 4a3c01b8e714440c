"""A service whose database has standbys, and ways to disturb them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from local.postgres import EmbeddedPostgres
from local.programs import Program
from local.stack import DATABASE
from tests.api import Organization
from tests.observing import metric, until


def ask(server: EmbeddedPostgres, query: str, *parameters: object) -> Any:
    """Return the single value of a query."""
    with psycopg.connect(server.url(DATABASE), autocommit=True) as connection:
        row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


class Standby:
    """A hot standby that can be delayed."""

    def __init__(self, server: EmbeddedPostgres, primary: EmbeddedPostgres) -> None:
        self.server = server
        self.primary = primary

    @property
    def host(self) -> str:
        """The directory of its socket, which the service uses as its name."""
        return str(conninfo_to_dict(self.server.url())["host"])

    def ask(self, query: str, *parameters: object) -> Any:
        return ask(self.server, query, *parameters)

    def pause(self) -> None:
        """Pause the replay, and return when it has paused."""
        self.ask("SELECT pg_wal_replay_pause()::text")
        until(lambda: self.ask("SELECT pg_get_wal_replay_pause_state()") == "paused")

    def resume(self) -> None:
        self.ask("SELECT pg_wal_replay_resume()::text")

    def wait_until_received(self) -> None:
        """Wait until it has received all that the primary has committed."""
        end = ask(self.primary, "SELECT pg_current_wal_flush_lsn()::text")
        until(lambda: self.ask("SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn", end))

    def catch_up(self) -> None:
        """Wait until it has replayed all that the primary has committed."""
        end = ask(self.primary, "SELECT pg_current_wal_flush_lsn()::text")
        until(lambda: self.ask("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", end))

    def delay(self, by: str) -> None:
        """Delay the replay of each commit from now on."""
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = '{by}'")
            connection.execute("SELECT pg_reload_conf()")
        until(lambda: self.ask("SHOW recovery_min_apply_delay") == by)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Stop all its processes: connections stay open, but nothing responds."""
        assert self.server.pid is not None
        postmaster = psutil.Process(self.server.pid)
        postmaster.suspend()  # first, so that it starts no more
        stopped = [postmaster, *postmaster.children()]
        try:
            for process in stopped[1:]:
                process.suspend()
            yield
        finally:
            # The postmaster last: it would reap what ended meanwhile.
            for process in reversed(stopped):
                process.resume()

    @contextmanager
    def locked(self, *, conflict: bool = False) -> Iterator[None]:
        """Replay the lock of a table and stop there: reads wait for it, the primary's do not.

        With `conflict`, the lock of another table comes next, which those reads hold.
        """
        with psycopg.connect(self.primary.url(DATABASE)) as locker:
            locker.execute("LOCK TABLE appointments IN ACCESS EXCLUSIVE MODE")
            ask(self.primary, "SELECT pg_switch_wal()::text")  # sends it at once
            until(lambda: self._locks("mode = 'AccessExclusiveLock' AND granted") == 1)
            self.pause()
            if conflict:
                locker.execute("LOCK TABLE organizations IN ACCESS EXCLUSIVE MODE")
            locker.rollback()
        try:
            yield
        finally:
            self.resume()

    def wait_for_a_waiting_read(self) -> None:
        until(lambda: self._locks("NOT granted") == 1)

    def _locks(self, which: str) -> int:
        found: int = self.ask(
            f"SELECT count(*) FROM pg_locks WHERE relation = 'appointments'::regclass AND {which}"
        )
        return found


class Replicated:
    """An organization of a service with standbys, with counts of which server was read."""

    def __init__(self, service: Program, org: Organization, standbys: list[Standby]) -> None:
        self.service = service
        self.org = org
        self.standbys = standbys

    def titles(self, **options: Any) -> list[str]:
        return [item.title for item in self.org.list_page(**options).appointments]

    def count(self, result: str, *standbys: Standby) -> float:
        """Return the number of reads of one standby, or of all, with this result."""
        name = "appointments_replica_reads_total"
        return sum(
            metric(self.service, f'{name}{{replica="{standby.host}",result="{result}"}}')
            for standby in standbys or self.standbys
        )

    def until_asked(self, standby: Standby) -> None:
        """Read until a standby answers: the service probes it at intervals."""
        before = self.count("answered", standby)

        def answered() -> bool:
            self.org.list_page(min_revision=0)
            return self.count("answered", standby) > before

        until(answered)


class Readers:
    """Reads that allow an older state, from several threads, until `stop`."""

    def __init__(self, replicated: Replicated) -> None:
        self.done = 0
        self.longest = 0.0
        self._replicated = replicated
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._readers = [self._pool.submit(self._read) for _ in range(4)]

    def stop(self) -> None:
        """Stop. Raises the error of a read that failed."""
        self._stop.set()
        self._pool.shutdown()
        for reader in self._readers:
            reader.result()

    def _read(self) -> None:
        while not self._stop.is_set():
            started = time.perf_counter()
            assert self._replicated.titles(min_revision=1) == ["old"]
            self.longest = max(self.longest, time.perf_counter() - started)
            self.done += 1
