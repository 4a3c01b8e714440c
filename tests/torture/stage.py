"""Everything that runs during a run: databases, programs, a broker, and the proxies between them.

Two services share a primary with a synchronous standby. Each has a gateway and the clients of its
own queue of operations: that in PostgreSQL, or RabbitMQ. Workers empty both.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import psycopg

from local.postgres import NOT_DURABLE, EmbeddedPostgres, migrate
from local.programs import Program, StartError
from local.rabbitmq import RabbitMQ, server_script
from local.stack import ANY_PORT, DATABASE, base_environment
from tests.databases import temporary_data_directory
from tests.forking import ForkServer
from tests.receiver import LOOPBACK
from tests.torture.doors import Door
from tests.torture.grpc_door import GrpcDoor
from tests.torture.proxy import Proxy
from tests.torture.rest_door import RestDoor

# Bytes of a file system in memory, for each database.
ROOM = 3 * 2**30
SETTINGS = {
    "STATEMENT_TIMEOUT": "2",
    "LOCK_TIMEOUT": "1",
    "OPERATION_LEASE": "4",
    "EVENT_LEASE": "2",
    "LOG_LEVEL": "warning",
    # Webhooks reach the receiver of a run, and are sent again soon after it has failed.
    "WEBHOOK_ALLOWED_NETWORKS": LOOPBACK,
    "WEBHOOK_TIMEOUT": "1",
    "WEBHOOK_LEASE": "2.5",
    "WEBHOOK_FIRST_RETRY": "0.05",
    "WEBHOOK_LONGEST_RETRY": "0.5",
}
POSTGRES = {
    **NOT_DURABLE,
    "max_wal_size": "256MB",
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": "1s",
    "wal_keep_size": "256MB",
}

Start = Callable[[], Program]


class Disk:
    """A file system in memory that can be full; a plain directory without the right to mount."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.mounted = self._mount(f"size={ROOM},mode=755")

    def fill(self) -> None:
        """Leave no room for anything new."""
        used = psutil.disk_usage(str(self.path)).used
        self._mount(f"remount,size={used + 65536}")

    def clear(self) -> None:
        """Make room again."""
        self._mount(f"remount,size={ROOM}")

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], check=False)

    def _mount(self, options: str) -> bool:
        if sys.platform != "linux" or os.geteuid() != 0:
            return False
        command = ["mount", "-t", "tmpfs", "-o", options, "torture", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Databases:
    """A primary and its synchronous standby, each behind a proxy of its own."""

    def __init__(self, directory: Path) -> None:
        self.disks = [Disk(directory / "0"), Disk(directory / "1")]
        self.proxies = [Proxy("database 0", 0), Proxy("database 1", 0)]
        # The number of the disk and proxy of the primary.
        self.place = 0
        self._generation = 0
        self.primary = EmbeddedPostgres(self.disks[0].path / "pg0", POSTGRES)
        self.standby: EmbeddedPostgres | None = None

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)
        return f"postgresql://postgres@{hosts}/{DATABASE}"

    def start(self) -> None:
        """Start both and migrate. Blocks."""
        self.primary.start()
        self.primary.create_database(DATABASE)
        migrate(self.primary.url(DATABASE))
        self.add_standby()

    def stop(self) -> None:
        for server in (self.standby, self.primary):
            if server is not None:
                server.stop(immediate=True)
        for disk in self.disks:
            disk.unmount()

    def add_standby(self) -> None:
        """Copy the primary to the other disk; from then on, commits wait for the copy. Blocks."""
        self._generation += 1
        other = self.disks[1 - self.place]
        standby = self.primary.standby(other.path / f"pg{self._generation}")
        standby.start()
        # The copied setting would make the standby, once promoted, wait for another one.
        self._wait_for_standby(standby, None)
        self.standby = standby
        self.proxies[self.place].target = _socket(self.primary)
        self.proxies[1 - self.place].target = _socket(standby)
        deadline = time.monotonic() + 60
        streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        with psycopg.connect(self.primary.url(), autocommit=True) as connection:
            while connection.execute(streaming).fetchone() != (1,):
                if time.monotonic() > deadline:
                    raise StartError("the standby does not stream")
                time.sleep(0.1)
        self._wait_for_standby(self.primary, "*")

    def promote(self) -> None:
        """Make the standby the primary, after the primary was killed. Blocks."""
        assert self.standby is not None
        self.primary.stop(immediate=True)
        with psycopg.connect(self.standby.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_promote(true, 60)")
        former = self.primary
        self.primary, self.standby = self.standby, None
        self.place = 1 - self.place
        subprocess.run(["rm", "-rf", str(former.directory)], check=True)

    def restart_primary(self) -> None:
        """Start the primary after the last process of a killed server has ended. Blocks."""
        self.primary.stop(immediate=True)
        _start(self.primary)

    @staticmethod
    def _wait_for_standby(server: EmbeddedPostgres, names: str | None) -> None:
        value = f"= '{names}'" if names else "= ''"
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("SET synchronous_commit = local")
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names {value}".encode())
            connection.execute("SELECT pg_reload_conf()")


class Stage:
    """All parts by their names, and the doors to them."""

    def __init__(self, databases: Databases, broker: RabbitMQ | None) -> None:
        self.databases = databases
        self.broker = broker
        self.starts: dict[str, Start] = {}
        self.programs: dict[str, Program] = {}
        self.proxies: list[Proxy] = [*databases.proxies]
        self.doors: list[Door] = []
        # The doors of each queue of operations.
        self.accepting: list[list[Door]] = []
        # What an earlier process of a part has written.
        self.log: list[str] = []

    def start(self, part: str) -> None:
        """Start a program, on its former port. Blocks."""
        self.programs[part] = self.starts[part]().wait_until_listening()

    def kill(self, part: str) -> None:
        """Kill a program with SIGKILL. Blocks until it has ended."""
        self.programs[part].kill()
        self.log += self.programs[part].log_lines()

    def processes(self, part: str) -> list[psutil.Process]:
        """Return the processes of a program or database, those first that start others."""
        if part in ("primary", "standby"):
            server = self.databases.primary if part == "primary" else self.databases.standby
            assert server is not None
            assert server.pid is not None
            postmaster = psutil.Process(server.pid)
            return [postmaster, *postmaster.children()]
        return [psutil.Process(self.programs[part].process.pid)]

    def log_lines(self) -> list[str]:
        return self.log + [line for one in self.programs.values() for line in one.log_lines()]


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Start everything, and stop it at the end."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_data_directory())
        directory.chmod(0o755)
        databases = Databases(directory)
        stack.callback(databases.stop)
        await asyncio.to_thread(databases.start)
        for proxy in databases.proxies:
            await proxy.start()
            stack.push_async_callback(proxy.stop)
        broker = None
        if server_script() is not None:
            broker = RabbitMQ(directory / "rabbitmq")
            stack.callback(broker.stop)
            await asyncio.to_thread(broker.start)
        stage = Stage(databases, broker)
        fork = ForkServer()
        stack.callback(fork.close)
        stack.push_async_callback(asyncio.to_thread, _stop_programs, stage)
        queues = ["postgres", "rabbitmq" if broker else "postgres"]
        for number, queue in enumerate(queues):
            await _add(stage, fork, stack, number, queue)
        yield stage


async def _add(
    stage: Stage, fork: ForkServer, stack: AsyncExitStack, number: int, queue: str
) -> None:
    """Add a service with its gateway, worker, proxies and doors."""
    settings = {
        **base_environment(),
        **ANY_PORT,
        **SETTINGS,
        "DATABASE_URL": stage.databases.url,
        "DATABASE_READ_URL": stage.databases.url,
        "OPERATION_QUEUE": queue,
        **({"AMQP_URL": stage.broker.url} if stage.broker else {}),
    }

    def add(part: str, module: str, more: Mapping[str, str], *arguments: str) -> Program:
        stage.starts[part] = lambda: fork.program(module, {**settings, **more}, *arguments)
        stage.start(part)
        return stage.programs[part]

    async def proxied(name: str, port: int) -> Proxy:
        proxy = await Proxy(name, port).start()
        stack.push_async_callback(proxy.stop)
        stage.proxies.append(proxy)
        return proxy

    service = await asyncio.to_thread(add, f"service {number}", "service", {})
    settings["GRPC_PORT"] = str(service.port)
    called = await proxied(f"service {number}", service.port)
    relayed = await proxied(f"gateway to service {number}", service.port)
    address = {"SERVICE_ADDRESS": f"127.0.0.1:{relayed.port}"}
    gateway = await asyncio.to_thread(add, f"gateway {number}", "gateway", address)
    settings["GATEWAY_PORT"] = str(gateway.port)
    rest = await proxied(f"gateway {number}", gateway.port)
    # A worker of the queue in PostgreSQL would not empty RabbitMQ.
    worker = {"OPERATION_QUEUE": "rabbitmq" if stage.broker else "postgres"}
    await asyncio.to_thread(add, f"worker {number}", "service", worker, "worker")
    doors: list[Door] = []
    grpc_door = GrpcDoor(str(number), f"127.0.0.1:{called.port}")
    stack.push_async_callback(grpc_door.close)
    rest_door = RestDoor(str(number), f"http://127.0.0.1:{rest.port}")
    stack.push_async_callback(rest_door.close)
    doors += [grpc_door, rest_door]
    stage.doors += doors
    stage.accepting.append(doors)


def _stop_programs(stage: Stage) -> None:
    for program in stage.programs.values():
        if program.process.poll() is None:
            program.process.send_signal(signal.SIGCONT)
        program.kill()


def _socket(server: EmbeddedPostgres) -> str:
    return f"{server.directory}/.s.PGSQL.5432"


def _start(server: EmbeddedPostgres) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            return server.start()
        except StartError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)
