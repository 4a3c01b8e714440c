"""Read replicas, for reads that allow an older state. No read waits long for a replica."""

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, LiteralString, NoReturn, Self

import psycopg
import structlog
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from runtime.backoff import run_forever
from runtime.listening import bracketed
from service.errors import Overloaded, ServiceError
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.rows import Row
from service.postgres.schema import check_replica
from service.postgres.session import CALLER_ROLE, DatabaseUnfit, Timeouts

# Seconds between probes of a replica that failed.
PROBE_INTERVAL = 2.0
# Seconds to wait for a connection to a replica. It is short because the primary can answer.
CONNECTION_TIMEOUT = 0.1

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replica:
    name: str
    database: Database
    # Set while the replica is not used: until its first response, and after each failure.
    failed: asyncio.Event = field(default_factory=asyncio.Event)


class Replicas:
    """The hosts of a connection string, used in turn, each with its own connections.

    A replica that fails, or does not respond within `timeout` (seconds), is not used until it
    responds to a probe in the background. So few reads wait for a failed replica, and none
    fails. A read that is slow or is cancelled by recovery also counts as a failure.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int,
        max_waiting: int,
        timeout: float,
        metrics: Metrics,
        distributed: bool = False,
    ) -> None:
        self._timeout = timeout
        self._reads = metrics.replica_reads
        self._errors = metrics.unexpected_errors
        self._stack = AsyncExitStack()
        self._urls = by_host(url)
        self._timeouts = Timeouts(connection=CONNECTION_TIMEOUT, lock=timeout, statement=timeout)
        self._replicas = deque(
            _Replica(
                name=name,
                database=Database(
                    conninfo,
                    name=f"replica {name}",
                    connections=connections,
                    max_waiting=max_waiting,
                    timeouts=self._timeouts,
                    role=CALLER_ROLE,
                    replica=True,
                    metrics=metrics,
                    distributed=distributed,
                ),
            )
            for name, conninfo in self._urls.items()
        )

    async def check(self) -> None:
        """Raise DatabaseUnfit if a replica that responds now is unsuitable."""
        for name, url in self._urls.items():
            try:
                await check_replica(url, self._timeouts, role=CALLER_ROLE)
            except DatabaseUnfit as error:
                raise DatabaseUnfit(f"the replica {name} of DATABASE_READ_URL: {error}") from error

    async def __aenter__(self) -> Self:
        """Start to connect in the background, without waiting for any replica."""
        for replica in self._replicas:
            await self._stack.enter_async_context(replica.database)
            replica.failed.set()
            watch = asyncio.create_task(
                run_forever("watch replica", partial(self._watch, replica), self._errors)
            )
            self._stack.callback(watch.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def fetch(
        self,
        organization_id: str,
        statement: LiteralString,
        parameters: Mapping[str, Any],
        *,
        revision: int,
        epoch: str,
        raw: bool = False,
    ) -> list[Row] | None:
        """Return rows from a replica that has a revision; None if the primary must be read.

        The first column of the rows must be the revision that the replica has. `epoch` is that of
        the primary: a replica of another one has another change of that revision.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        self._replicas.rotate(-1)
        for replica in [replica for replica in self._replicas if not replica.failed.is_set()]:
            if replica.database.epoch != epoch:
                self._count(replica, "behind")
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    rows = await replica.database.fetch(
                        organization_id, statement, parameters, raw=raw
                    )
            except Overloaded:
                self._count(replica, "busy")
            except TimeoutError:
                self._set_failed(replica, "timed out")
                return None
            except (ServiceError, psycopg.Error) as error:
                self._set_failed(replica, str(error.__cause__ or error))
            else:
                found: int = rows[0][0]
                self._count(replica, "answered" if found >= revision else "behind")
                # If one replica lags, others may lag too; the primary never does.
                return rows if found >= revision else None
        return None

    def _set_failed(self, replica: _Replica, error: str) -> None:
        self._count(replica, "failed")
        if not replica.failed.is_set():
            replica.failed.set()
            log.warning("replica failed", replica=replica.name, error=error)

    def _count(self, replica: _Replica, result: str) -> None:
        self._reads.labels(replica.name, result).inc()

    async def _watch(self, replica: _Replica) -> NoReturn:
        """Probe a replica until it responds, at the start and after each failure."""
        while True:
            if await self._responds(replica):
                replica.failed.clear()
                log.info("replica available", replica=replica.name)
                await replica.failed.wait()
            await asyncio.sleep(PROBE_INTERVAL)

    async def _responds(self, replica: _Replica) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                await replica.database.fetch_across("SELECT 1")
        except (ServiceError, TimeoutError):
            return False
        return True


def by_host(url: str) -> dict[str, str]:
    """Split a connection string into one per host; the keys are `host:port`.

    An empty connection string has no hosts. Raises psycopg.ProgrammingError, and ValueError
    if the number of ports does not match the hosts.
    """
    if not url:
        return {}
    given = conninfo_to_dict(url)
    hosts, addresses, ports = (
        str(given.get(name) or "").split(",") for name in ("host", "hostaddr", "port")
    )
    count = max(len(hosts), len(addresses))
    if len(ports) == 1:
        ports *= count
    found = {}
    for host, address, port in zip(
        hosts if hosts != [""] else hosts * count,
        addresses if addresses != [""] else addresses * count,
        ports,
        strict=True,
    ):
        name = ":".join(filter(None, [bracketed(host or address or "localhost"), port]))
        one = {"host": host or None, "hostaddr": address or None, "port": port or None}
        found[name] = make_conninfo("", **{**given, **one})
    return found
