"""Runs PostgreSQL, the service, a worker and the gateway together on this machine."""

import base64
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import EADDRINUSE
from pathlib import Path

import psutil

from local.postgres import EmbeddedPostgres, check_database, migrate
from local.programs import Program, StartError
from runtime.listening import CannotListen, bracketed, listen_on, listening_socket

DATABASE = "appointments"

EVERY_HOST = "0.0.0.0"  # noqa: S104
# Addresses to connect to a program that listens on all interfaces.
LOOPBACK = {"": "127.0.0.1", EVERY_HOST: "127.0.0.1", "::": "127.0.0.1", "[::]": "127.0.0.1"}

# Settings for programs that must not conflict with others: loopback and any free port.
ANY_PORT = {
    "GRPC_HOST": "127.0.0.1",
    "GRPC_PORT": "0",
    "METRICS_PORT": "0",
    "GATEWAY_HOST": "127.0.0.1",
    "GATEWAY_PORT": "0",
    "GATEWAY_METRICS_PORT": "0",
    "WORKER_METRICS_PORT": "0",
}

# Variables that a child process inherits besides its settings.
_PASSED_ON = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The running programs, all of them ready."""

    database_url: str
    service: Program
    worker: Program
    gateway: Program


@contextmanager
def running(
    *,
    postgres: EmbeddedPostgres | None,
    secrets_key: Path | None = None,
    settings: Mapping[str, str],
    on_step: Callable[[str], None] = lambda _: None,
    stdout: int | None = subprocess.DEVNULL,
    on_errors: Callable[[str, list[str]], None] = lambda _name, _lines: None,
    on_exit: Callable[[Program], None] = lambda _: None,
) -> Iterator[Stack]:
    """Start everything, and stop it in reverse order when the block ends.

    `secrets_key` is a file with the key of SECRETS_KEYS, which is made if it does not exist.
    Without `postgres`, the server of `settings["DATABASE_URL"]` is used. `stdout`, `on_errors` and
    `on_exit` are those of Program; `on_errors` also gets the program's name.

    Raises StartError if a part does not start or does not stop cleanly. Nothing is left running
    then.
    """
    environment = {**base_environment(), **settings}
    check_ports(environment)
    with ExitStack() as stack:
        if postgres is None:
            check_database(environment["DATABASE_URL"])
        else:
            on_step(
                f"creating a database in {postgres.directory}"
                if postgres.new
                else f"starting the database in {postgres.directory}"
            )
            stack.enter_context(postgres)
            environment["DATABASE_URL"] = postgres.create_database(DATABASE)
        if secrets_key is not None:
            if not secrets_key.exists():
                secrets_key.touch(mode=0o600)
                secrets_key.write_text(f"{base64.b64encode(secrets.token_bytes(32)).decode()}\n")
            environment["SECRETS_KEYS_FILE"] = str(secrets_key)
        on_step("applying the migrations")
        migrate(environment["DATABASE_URL"])

        def start(name: str, *arguments: str) -> Program:
            part = arguments[0] if arguments else name
            on_step(f"starting the {part}")
            program = Program(
                name,
                environment,
                *arguments,
                stdout=stdout,
                on_errors=lambda lines: on_errors(part, lines),
                on_exit=on_exit,
            )
            stack.callback(_stop, program)
            return program.wait_until_listening()

        service = start("service")
        host = environment.get("GRPC_HOST", "")
        host = LOOPBACK.get(host, host)
        environment["SERVICE_ADDRESS"] = f"{bracketed(host)}:{service.port}"
        worker = start("service", "worker")
        gateway = start("gateway")
        yield Stack(
            database_url=environment["DATABASE_URL"],
            service=service,
            worker=worker,
            gateway=gateway,
        )


def base_environment() -> dict[str, str]:
    """Return the variables that every child process inherits."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def check_ports(environment: Mapping[str, str]) -> None:
    """Raise StartError if ports are in use, and name them. Call it before anything is started."""
    in_use = []
    for host_name, port_name, default in (
        ("GRPC_HOST", "GRPC_PORT", "50051"),
        ("GATEWAY_HOST", "GATEWAY_PORT", "3000"),
        ("GRPC_HOST", "METRICS_PORT", "9464"),
        ("GATEWAY_HOST", "GATEWAY_METRICS_PORT", "9465"),
        ("GRPC_HOST", "WORKER_METRICS_PORT", "9466"),
    ):
        text = environment.get(port_name, default)
        if not text:  # switched off, or refused by the program
            continue
        if not text.isdecimal() or int(text) > 65535:
            raise StartError(f"{port_name} is not a port: {text}")
        try:
            host = environment.get(host_name) or EVERY_HOST
            listen_on(host, int(text), _listen, settings=f"{host_name}, {port_name}")
        except CannotListen as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != EADDRINUSE:
                raise StartError(str(error)) from None
            owner = _owner(int(text))
            in_use.append(f"port {text} is in use{owner}: free it, or set {port_name}")
    if in_use:
        raise StartError("; ".join(in_use))


def _listen(address: str, port: int) -> tuple[None, int]:
    """Listen on a port for a moment. Raises OSError."""
    listening_socket(address, port).close()
    return None, port


def _stop(program: Program) -> None:
    had_ended = program.process.poll() is not None
    code = program.stop()
    # While it starts, it may not handle SIGTERM yet.
    if code != 0 and program.ready and not had_ended:
        raise StartError(f"{program.name} did not stop cleanly: {program.exit_summary()}")


def _owner(port: int) -> str:
    """Return " by process PID" if the process that listens on a port is visible, else ""."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr:
                continue
            if connection.laddr.port == port:
                return f" by process {connection.pid}" if connection.pid else ""
    except psutil.AccessDenied:
        pass
    return ""
