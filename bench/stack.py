"""PostgreSQL, the service and the gateway as their users run them, and what they cost.

Their logs go to a file: read through a pipe, they would cost this process time on the
cores that are measured.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from local.postgres import EmbeddedPostgres, migrate
from local.programs import Program, StartError
from local.rabbitmq import RabbitMQ
from local.stack import ANY_PORT, DATABASE, base_environment

# Durability is PostgreSQL's default. The rest is for pgbench's clients, and for a store of
# a million appointments.
SETTINGS = {"max_connections": "200", "shared_buffers": "512MB", "max_wal_size": "4GB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What runs: where it is reached, and the ids of its processes by name."""

    database_url: str
    service: str
    gateway: str
    worker: "Worker"
    processes: dict[str, int]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far by process, its children's included, by the system's account."""
        return {name: cpu_seconds_of(pid) for name, pid in self.processes.items()}

    def cpu_seconds_since(self, before: Mapping[str, float]) -> dict[str, float]:
        """CPU time since then, of the processes that run now."""
        return {
            name: seconds - before.get(name, 0.0) for name, seconds in self.cpu_seconds().items()
        }

    def peak_mib(self) -> dict[str, float]:
        """The most memory that service and gateway ever had resident, children included."""
        return {name: _peak_mib(self.processes[name]) for name in ("service", "gateway")}


class Worker:
    """A worker of the stack, which runs from `start` to `stop`, and not at first."""

    def __init__(
        self, environment: Mapping[str, str], directory: Path, processes: dict[str, int]
    ) -> None:
        self._environment = environment
        self._directory = directory
        self._processes = processes
        self._program = ExitStack()

    def start(self) -> None:
        """Return when it works, which may already be so."""
        if "worker" not in self._processes:
            program = _program("worker", self._environment, self._directory)
            self._processes["worker"] = self._program.enter_context(program).process.pid

    def stop(self) -> None:
        self._processes.pop("worker", None)
        self._program.close()


@contextmanager
def database(directory: Path) -> Iterator[tuple[str, int]]:
    """A new database on a server of its own; its URL and the server's process id."""
    with EmbeddedPostgres(directory / "postgres", SETTINGS) as postgres:
        url = postgres.create_database(DATABASE)
        migrate(url)
        if postgres.pid is None:
            raise StartError("PostgreSQL is gone")
        yield url, postgres.pid


@contextmanager
def stack(url: str, postgres: int, settings: Mapping[str, str], directory: Path) -> Iterator[Stack]:
    """Run the service and the gateway on the database, with their logs in the directory.

    And RabbitMQ, if the settings want the queue there and do not say where it is.
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
            processes=processes,
        )


@contextmanager
def _program(name: str, environment: Mapping[str, str], directory: Path) -> Iterator[Program]:
    module, *arguments = ["service", "worker"] if name == "worker" else [name]
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
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # its parent has its time now
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _peak_mib(pid: int) -> float:
    total = 0.0
    for process in _family(pid):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    return total


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
