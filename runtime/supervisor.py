"""Starts processes on one port, starts those again that die, and adds up their metrics.

They are fresh processes, not forks, and share nothing but the port: each listens
with SO_REUSEPORT, and the kernel deals the connections out among them.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from runtime.listening import listen_on, listening_socket, serve_metrics
from runtime.logs import log_event_loop
from runtime.supervised import Supervised

# In seconds: a process that ended sooner is started again later, and later each time.
SHORT_LIFE = 10.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0

# Exit codes of a process that was told to end: SIGTERM may come before it handles it.
_ENDED_AS_TOLD = (0, -signal.SIGTERM)


class CannotStart(Exception):
    """A process did not start; empty if the process has said why."""


def supervise(
    module: str,
    *,
    processes: int,
    host: str,
    port: int,
    metrics_port: int | None,
    names: tuple[str, str, str],
    settings: Callable[[int], dict[str, Any]],
    log: structlog.BoundLogger,
) -> None:
    """Run `python -m module` as processes until SIGTERM or SIGINT, then let them finish.

    `settings` makes what the processes have to take in place of the environment's settings,
    from the port that all of them listen on. `log` is told what a single process tells it.
    `names` are the settings of host, port and metrics port, for errors.

    Raises CannotStart or CannotListen; SystemExit if a process failed to end well.
    """
    host_name, port_name, metrics_name = names
    with ExitStack() as stack:
        held, port = listen_on(host, port, _reserved, settings=f"{host_name}, {port_name}")
        for each in held:
            stack.enter_context(each)
        running = _Processes()
        directory = None
        if metrics_port is not None:
            directory = stack.enter_context(_temporary_directory())
            metrics_port, stop = serve_metrics(
                _metrics(directory, running),
                host,
                metrics_port,
                settings=f"{host_name}, {metrics_name}",
            )
            stack.callback(stop)
        places = [
            Supervised(index=index, settings=settings(port), metrics_directory=directory)
            for index in range(processes)
        ]
        asyncio.run(_run(module, places, running, log, metrics_port))


async def _run(
    module: str,
    processes: list[Supervised],
    running: "_Processes",
    log: structlog.BoundLogger,
    metrics_port: int | None,
) -> None:
    log_event_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    keepers: list[asyncio.Task[int]] = []

    async def start(some: list[Supervised]) -> list[dict[str, Any]]:
        places = [_Place(module, supervised, running) for supervised in some]
        keepers.extend(asyncio.create_task(place.keep()) for place in places)
        return await asyncio.gather(*(place.listening for place in places))

    async def start_all() -> dict[str, Any]:
        # The first by itself: what keeps it from starting is then told once, not by each.
        (told,) = await start(processes[:1])
        await start(processes[1:])
        return told

    starting = asyncio.create_task(start_all())
    try:
        await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            told = {**starting.result(), "metrics_port": metrics_port}
            log.info(**told, processes=len(processes))
            await asyncio.wait({stopping, *keepers}, return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
    finally:
        for task in (stopping, starting, *keepers):
            task.cancel()
        ends = await asyncio.gather(*keepers, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end
        if isinstance(end, int) and end not in _ENDED_AS_TOLD:
            sys.exit(f"error: a process did not end well (exit code {end})")
    log.info("stopped")


class _Place:
    """A process's place, and the processes that hold it one after another."""

    def __init__(self, module: str, supervised: Supervised, running: "_Processes") -> None:
        # What the first process tells when it listens, or CannotStart.
        self.listening: asyncio.Future[dict[str, Any]] = asyncio.Future()
        self._module = module
        self._supervised = supervised
        self._running = running
        self._log = structlog.get_logger()

    async def keep(self) -> int:
        """Keep a process in this place until cancelled; return the exit code of the last."""
        delay = 0.0
        while True:
            began = time.monotonic()
            try:
                process, connection = self._start()
            except OSError as error:
                if not self.listening.done():
                    self.listening.set_exception(
                        CannotStart(f"a process could not be started: {error}")
                    )
                    return 1
                delay = _longer(delay)
                self._log.error("process not started", error=str(error), delay=delay)
                await asyncio.sleep(delay)
                continue
            with connection:
                try:
                    await self._hear(process.pid, connection)
                except asyncio.CancelledError:
                    process.terminate()
                    await _end_of(connection)
                    return process.wait()
                except Exception:  # noqa: BLE001  # another process is to keep the place
                    self._log.exception("unexpected error", loop="keep process")
                    process.kill()
            code = process.wait()
            self._forget()
            if not self.listening.done():
                # With a positive code it has told why on standard error, as one process does.
                why = "" if code > 0 else f"a process ended before it listened (exit code {code})"
                self.listening.set_exception(CannotStart(why))
                return code
            self._running.ended.labels(str(self._supervised.index)).inc()
            short = time.monotonic() - began < SHORT_LIFE
            delay = _longer(delay) if short else 0.0
            self._log.error(
                "process ended",
                process=self._supervised.index,
                pid=process.pid,
                code=code,
                delay=delay,
            )
            await asyncio.sleep(delay)

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start a process; the connection to it ends when it does, and it when that does."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = subprocess.Popen(  # noqa: S603  our own program
                [sys.executable, "-m", self._module],
                env={**os.environ, **self._supervised.environment()},
                stdin=theirs.fileno(),
                # A Ctrl-C at the terminal is for the supervisor, which stops the processes.
                process_group=0,
            )
        self._running.pids[self._supervised.index] = process.pid
        return process, ours

    async def _hear(self, pid: int, connection: socket.socket) -> None:
        """Take note when the process listens; return when it has ended."""
        told = await asyncio.get_running_loop().sock_recv(connection, 65536)
        if told and self.listening.done():
            self._log.info("process listening", process=self._supervised.index, pid=pid)
        elif told:
            self.listening.set_result(orjson.loads(told.splitlines()[0]))
        await _end_of(connection)

    def _forget(self) -> None:
        """What the process had at the moment is no more; what it counted stays."""
        self._running.pids.pop(self._supervised.index, None)
        if self._supervised.metrics_directory is not None:
            mark_process_dead(self._supervised.index, self._supervised.metrics_directory)  # type: ignore[no-untyped-call]


def _longer(delay: float) -> float:
    return min(max(2 * delay, FIRST_DELAY), LONGEST_DELAY)


async def _end_of(connection: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(connection, 65536):
        pass


def _reserved(address: str, port: int) -> tuple[socket.socket, int]:
    """Hold a port that is nobody else's, so that only processes with SO_REUSEPORT share it.

    The kernel would let strangers of the same user share it as well; they are refused by
    listening without sharing for a moment. A supervisor that does so later meets the
    socket that is held, which allows no reuse, even while no process listens yet.
    """
    with listening_socket(address, port) as alone:
        place = alone.getsockname()
        held = socket.socket(alone.family, alone.type, alone.proto)
    try:
        # For connections of an earlier process that linger in TIME_WAIT.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if held.family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address != "::")
        held.bind(place)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        held.close()
        raise
    return held, place[1]


@contextmanager
def _temporary_directory() -> Iterator[str]:
    try:
        directory = TemporaryDirectory(prefix="appointments-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        raise CannotStart(
            f"metrics of several processes need a temporary directory: {error.strerror}"
        ) from error
    with directory as path:
        yield path


def _metrics(directory: str, running: "_Processes") -> CollectorRegistry:
    """Return the sum of what all processes have counted, dead ones included."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    registry.register(running)
    return registry


class _Processes(Collector):
    """What the kernel says of each process: memory, CPU time, open files; and how many ended."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.ended = Counter(
            "processes_ended",
            "Processes that ended by themselves and were started again",
            ["process"],
            registry=None,
        )

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for index, pid in list(self.pids.items()):
            for one in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                every = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    labels = {**sample.labels, "process": str(index)}
                    every.add_sample(sample.name, labels, sample.value)
        return [*families.values(), *self.ended.collect()]
