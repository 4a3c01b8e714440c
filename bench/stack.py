"""Starts PostgreSQL, service, gateway and empty servers, and measures their CPU time and memory.

Their logs go to files. Reading them through pipes would use CPU time on the measured cores.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from local.postgres import EmbeddedPostgres, migrate
from local.programs import Program, StartError
from local.rabbitmq import RabbitMQ
from local.stack import ANY_PORT, DATABASE, base_environment

# For pgbench's clients and a million appointments. Durability settings are the defaults.
SETTINGS = {"max_connections": "200", "shared_buffers": "512MB", "max_wal_size": "4GB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The addresses and process ids of the running programs."""

    database_url: str
    service: str
    gateway: str
    worker: "Worker"
    empty_servers: "EmptyServers"
    processes: dict[str, int]

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time so far by program, including child processes."""
        return {name: cpu_seconds_of(pid) for name, pid in self.processes.items()}

    def cpu_seconds_since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Return the CPU time since `before`, of the programs that run now."""
        return {
            name: seconds - before.get(name, 0.0) for name, seconds in self.cpu_seconds().items()
        }

    def peak_mib(self) -> dict[str, float]:
        """Return the peak resident memory of service and gateway, including children."""
        return {name: peak_mib(self.processes[name]) for name in ("service", "gateway")}


class Worker:
    """A worker that runs between `start` and `stop`."""

    def __init__(
        self, environment: Mapping[str, str], directory: Path, processes: dict[str, int]
    ) -> None:
        self._environment = environment
        self._directory = directory
        self._processes = processes
        self._program = ExitStack()

    def start(self) -> None:
        """Start the worker, unless it runs, and wait until it is ready."""
        if "worker" not in self._processes:
            program = _program("service", self._environment, self._directory, "worker")
            self._processes["worker"] = self._program.enter_context(program).process.pid

    def stop(self) -> None:
        self._processes.pop("worker", None)
        self._program.close()


class EmptyServers:
    """Servers that only answer (bench.empty), one for gRPC and one for REST."""

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        self._environment = environment
        self._directory = directory
        self._running: dict[str, Program] = {}
        self._programs = ExitStack()

    def start(self, interface: str, response: bytes) -> Program:
        """Return the server for an interface. Unless it runs, start it with this response."""
        if interface not in self._running:
            file = self._directory / f"response-{interface}"
            file.write_bytes(response)
            program = _program(
                "bench.empty", self._environment, self._directory, interface, str(file)
            )
            self._running[interface] = self._programs.enter_context(program)
        return self._running[interface]

    def stop(self) -> None:
        self._running.clear()
        self._programs.close()


@contextmanager
def database(directory: Path) -> Iterator[tuple[str, int]]:
    """Start a server with a new database; yields its URL and the server's process id."""
    with EmbeddedPostgres(directory / "postgres", SETTINGS) as postgres:
        url = postgres.create_database(DATABASE)
        migrate(url)
        if postgres.pid is None:
            raise StartError("PostgreSQL has ended")
        yield url, postgres.pid


@contextmanager
def stack(url: str, postgres: int, settings: Mapping[str, str], directory: Path) -> Iterator[Stack]:
    """Run service and gateway on the database, with their logs in the directory.

    Starts RabbitMQ if it is the operation queue and the settings have no AMQP_URL.
    """
    environment = {**base_environment(), **ANY_PORT, **settings, "DATABASE_URL": url}
    processes = {"postgresql": postgres}
    with ExitStack() as parts:
        if settings.get("OPERATION_QUEUE") == "rabbitmq" and "AMQP_URL" not in settings:
            broker = parts.enter_context(RabbitMQ(directory / "rabbitmq"))
            environment["AMQP_URL"] = broker.url
            processes["rabbitmq"] = broker.pid
        worker = Worker(environment, directory, processes)
        parts.callback(worker.stop)
        empty_servers = EmptyServers(environment, directory)
        parts.callback(empty_servers.stop)
        addresses = {}
        for name in ("service", "gateway"):
            program = parts.enter_context(_program(name, environment, directory))
            processes[name] = program.process.pid
            addresses[name] = environment[f"{name.upper()}_ADDRESS"] = program.address
        yield Stack(
            database_url=url,
            service=addresses["service"],
            gateway=addresses["gateway"],
            worker=worker,
            empty_servers=empty_servers,
            processes=processes,
        )


@contextmanager
def _program(
    module: str, environment: Mapping[str, str], directory: Path, *arguments: str
) -> Iterator[Program]:
    name = "-".join((module, *arguments[:1]))
    with (directory / f"{name}.log").open("wb") as log:
        program = Program(module, environment, *arguments, stdout=log.fileno())
    try:
        yield program.wait_until_listening()
    finally:
        program.stop()


def cpu_seconds_of(pid: int) -> float:
    """CPU time so far of a process and its children, dead ones included."""
    total = 0.0
    for process in _family(pid):
        try:
            # cpu_times counts in hundredths of a second; the clock of the process is exact
            running = time.clock_gettime(_cpu_clock(process.pid))
            times = process.cpu_times()
        except (OSError, psutil.NoSuchProcess):
            continue  # its time now counts for its parent
        total += running + times.children_user + times.children_system
    return total


def _cpu_clock(pid: int) -> int:
    """Return Linux's clock of a process's CPU time, as clock_getcpuclockid(3) does."""
    return ~pid << 3 | 2


def peak_mib(pid: int) -> float:
    """Peak resident memory so far of a process and its children, 0 after its end."""
    total = 0.0
    for process in _family(pid):
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    return total


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
