"""A separate RabbitMQ node, if `rabbitmq-server` is installed.

It shares nothing with another node on the machine: it has its own name, ports, cookie, data,
settings and plugins, and its own epmd, Erlang's port mapper.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from local.programs import START_TIMEOUT, STOP_TIMEOUT, StartError, die_with_parent

# The low disk limit keeps RabbitMQ from blocking publishers on a small machine.
CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
log.console = true
log.file = false
disk_free_limit.absolute = 10MB
"""

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"


def server_script() -> Path | None:
    """Return the script that starts a node, None if RabbitMQ is not installed.

    In Debian's packages, the script in the PATH is a wrapper, which changes the user and the
    directory. The script itself is in the same directory as the wrapper's target.
    """
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin{os.pathsep}/usr/local/sbin"
    found = shutil.which("rabbitmq-server", path=path)
    if found is None:
        return None
    script = Path(found).resolve()
    return script.with_name("rabbitmq-server")


def _installed_script() -> Path:
    script = server_script()
    if script is None:
        raise StartError("rabbitmq-server is not installed")
    return script


class RabbitMQ:
    """A node with its data in a directory. It listens on loopback only.

    It can be started, stopped and killed repeatedly, and keeps its data, ports and URL. It stops
    when this process dies.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.port, self._distribution_port, self._epmd_port = free_ports(3)
        self._log = self.directory / "output"
        self._epmd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The URL of the default virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """The process id of the Erlang VM. Raises StartError if it does not run."""
        if self._process is None:
            raise StartError("RabbitMQ is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the node and wait until it accepts connections. Raises StartError."""
        if self._process is not None:
            return
        script = _installed_script()
        try:
            self._configure()
            self._start_epmd()
            self._run(script)
        except BaseException:
            self.stop()
            raise

    def add_virtual_host(self, name: str) -> str:
        """Add a virtual host, which has its own queues and exchanges. Returns its URL."""
        everything = ", ".join(['<<".*">>'] * 3)
        self._evaluate(
            f'rabbit_vhost:add(<<"{name}">>, <<"tests">>), rabbit_auth_backend_internal:'
            f'set_permissions(<<"guest">>, <<"{name}">>, {everything}, <<"tests">>).'
        )
        return f"{self.url}{name}"

    def flush_declarations(self) -> None:
        """Write declarations to disk now. RabbitMQ would write them some time later."""
        self._evaluate("mnesia:sync_log().")

    def _evaluate(self, expression: str) -> None:
        """Evaluate an Erlang expression in the node. Raises StartError if it fails."""
        done = subprocess.run(
            [str(_installed_script().with_name("rabbitmqctl")), "eval", expression],
            cwd="/",
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StartError(f"rabbitmqctl failed: {(done.stderr or done.stdout)[-500:]}")

    def stop(self) -> None:
        """Disconnect all clients and stop gracefully."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process.wait()
            self._process = None
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def kill(self) -> None:
        """Kill the node with SIGKILL, as in a crash. Confirmed messages survive.

        Messages in a quorum queue that was declared in the last three seconds are lost, as
        RabbitMQ writes the names of such queues to disk with that delay.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _configure(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        configuration = CONFIGURATION.format(port=self.port)
        (self.directory / "rabbitmq.conf").write_text(configuration)
        (self.directory / "enabled_plugins").write_text("[].\n")

    def _environment(self) -> Mapping[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            # Erlang creates its cookie there.
            "HOME": str(self.directory),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"appointments-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            # The script replaces itself by the Erlang VM instead of supervising it, so that
            # the VM gets the signals.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _start_epmd(self) -> None:
        """Start epmd as a child process. The one that Erlang starts would outlive this process."""
        if self._epmd is not None:
            return
        epmd = shutil.which("epmd")
        if epmd is None:
            raise StartError("epmd is not in the PATH: it is part of Erlang, which RabbitMQ needs")
        command = [epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)]
        self._epmd = subprocess.Popen(
            die_with_parent(command, signal_number=signal.SIGKILL),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not _responds(self._epmd_port, b""):
            if self._epmd.poll() is not None or time.monotonic() > deadline:
                raise StartError("epmd did not start")
            time.sleep(0.02)

    def _run(self, script: Path) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                die_with_parent([str(script)], signal_number=signal.SIGKILL),
                cwd="/",
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not _responds(self.port, PROTOCOL_HEADER):
            if self._process.poll() is not None or time.monotonic() > deadline:
                output = self._log.read_text(errors="replace").strip()[-2000:]
                raise StartError(f"RabbitMQ did not start: {output or 'no output'}")
            time.sleep(0.05)


def _responds(port: int, greeting: bytes) -> bool:
    """Return whether a server listens on the port and responds to the greeting, if any."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if not greeting:
                return True
            connection.sendall(greeting)
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Return different ports that are free. Other programs may still take them.

    They are below those that the kernel gives to connections and to port 0.
    """
    with ExitStack() as stack:
        ports: list[int] = []
        for port in random.sample(range(20_000, 32_000), 1000):
            if len(ports) == count:
                break
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
        return ports
