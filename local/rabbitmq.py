"""A RabbitMQ node of our own, where `rabbitmq-server` is installed.

It shares nothing with a node that runs on the machine anyway: it has its own name, ports,
cookie, data, settings and plugins, and its own epmd, Erlang's directory of nodes.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from local.programs import START_TIMEOUT, STOP_TIMEOUT, StartError, die_with_parent

# What keeps a small machine from blocking publishers; the rest is as RabbitMQ has it.
CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
log.console = true
log.file = false
disk_free_limit.absolute = 10MB
"""

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"


def server_script() -> Path | None:
    """The script that starts a node; None if RabbitMQ is not installed.

    The one in the path of Debian's packages is a wrapper, which changes the user and the
    directory; the script itself is beside it.
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
    """A node on a directory, reachable through loopback only.

    It can be started, stopped and killed again and again, and keeps its data, ports and
    URL. It stops when this process dies.
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
        """What AMQP clients take."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """The process of the Erlang machine, while it runs."""
        if self._process is None:
            raise StartError("RabbitMQ is not running")
        return self._process.pid

    def start(self) -> None:
        """Return when it takes connections. StartError if it does not."""
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
        """Make a virtual host, whose queues nobody else sees; return its URL."""
        everything = ", ".join(['<<".*">>'] * 3)
        self._evaluate(
            f'rabbit_vhost:add(<<"{name}">>, <<"tests">>), rabbit_auth_backend_internal:'
            f'set_permissions(<<"guest">>, <<"{name}">>, {everything}, <<"tests">>).'
        )
        return f"{self.url}{name}"

    def flush_declarations(self) -> None:
        """Have what was declared on the disk, where RabbitMQ writes it some time afterwards."""
        self._evaluate("mnesia:sync_log().")

    def _evaluate(self, expression: str) -> None:
        """Run an expression of Erlang in the node. StartError if it fails."""
        done = subprocess.run(
            [str(_installed_script().with_name("rabbitmqctl")), "eval", expression],
            cwd="/",
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StartError(f"RabbitMQ does not do it: {(done.stderr or done.stdout)[-500:]}")

    def stop(self) -> None:
        """Disconnect every client and stop, in order."""
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
        """End it at once (SIGKILL): a crash. Confirmed messages are still there afterwards.

        But for those in a quorum queue that was declared less than three seconds before:
        RabbitMQ writes the names of such queues with that delay.
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
            # Erlang makes its cookie there.
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
        """Start the directory of nodes in the foreground; Erlang's own would outlive us."""
        if self._epmd is not None:
            return
        epmd = shutil.which("epmd")
        if epmd is None:
            raise StartError("epmd is not in the PATH: Erlang, which RabbitMQ needs, has it")
        command = [epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)]
        self._epmd = subprocess.Popen(
            die_with_parent(command, signal_number=signal.SIGKILL),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        give_up = time.monotonic() + START_TIMEOUT
        while not _answers(self._epmd_port, b""):
            if self._epmd.poll() is not None or time.monotonic() > give_up:
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
        give_up = time.monotonic() + START_TIMEOUT
        while not _answers(self.port, PROTOCOL_HEADER):
            if self._process.poll() is not None or time.monotonic() > give_up:
                words = self._log.read_text(errors="replace").strip()[-2000:]
                raise StartError(f"RabbitMQ did not start: {words or 'no output'}")
            time.sleep(0.05)


def _answers(port: int, greeting: bytes) -> bool:
    """Tell whether somebody listens there, and has a word for the greeting, if there is one."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if not greeting:
                return True
            connection.sendall(greeting)
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
