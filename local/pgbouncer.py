"""A PgBouncer, if `pgbouncer` is installed, in front of a server. It pools transactions."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from local.postgres import SYSTEM_USER
from local.programs import START_TIMEOUT, StartError, die_with_parent


def pgbouncer_program() -> str | None:
    """Return the path of the program, None if PgBouncer is not installed."""
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin{os.pathsep}/usr/local/sbin"
    return shutil.which("pgbouncer", path=path)


class PgBouncer:
    """A PgBouncer with its files in a directory. It listens on a Unix socket only.

    Nobody is asked for a password. It runs as the user of the embedded server, if this process is
    root's, whom it refuses. It stops when this process dies. `connections` are those to the
    server for each user and database.
    """

    def __init__(
        self,
        directory: Path,
        server_url: str,
        *,
        connections: int,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self._server_url = server_url
        self._connections = connections
        self._settings = dict(settings or {})
        self._log = self.directory / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id. Raises StartError if it does not run."""
        if self._process is None:
            raise StartError("PgBouncer is not running")
        return self._process.pid

    def url(self, database: str, user: str) -> str:
        """Return the URL of a database through the pooler."""
        return f"postgresql://{quote(user)}@/{database}?host={quote(str(self.directory))}&port=6432"

    def start(self) -> None:
        """Start it and wait until it accepts connections. Raises StartError."""
        program = pgbouncer_program()
        if program is None:
            raise StartError("pgbouncer is not installed")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._configure()
        user = ""
        if os.geteuid() == 0:
            user = SYSTEM_USER
            entry = pwd.getpwnam(user)
            os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                die_with_parent(
                    [program, str(self.directory / "pgbouncer.ini")],
                    signal_number=signal.SIGKILL,
                    user=user,
                ),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not (self.directory / ".s.PGSQL.6432").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                output = self._log.read_text(errors="replace").strip()[-2000:]
                raise StartError(f"PgBouncer did not start: {output or 'no output'}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Disconnect all clients and stop."""
        if self._process is None:
            return
        # Its versions do not agree on a signal that ends it at once, and it has nothing to lose.
        self._process.kill()
        self._process.wait()
        self._process = None
        (self.directory / ".s.PGSQL.6432").unlink(missing_ok=True)

    def _configure(self) -> None:
        settings = {
            "listen_addr": "",
            "listen_port": "6432",
            "unix_socket_dir": str(self.directory),
            "auth_type": "trust",
            "auth_file": str(self.directory / "users.txt"),
            "pool_mode": "transaction",
            "default_pool_size": str(self._connections),
            "max_client_conn": "500",
            **self._settings,
        }
        server = conninfo_to_dict(self._server_url)
        address = " ".join(f"{name}={server[name]}" for name in ("host", "port") if name in server)
        lines = ["[databases]", f"* = {address}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self.directory / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        (self.directory / "users.txt").write_text(self._users())

    def _users(self) -> str:
        """Return all roles of the server that may log in, in the format of PgBouncer."""
        with psycopg.connect(make_conninfo(self._server_url, dbname="postgres")) as connection:
            names = connection.execute("SELECT rolname FROM pg_roles WHERE rolcanlogin")
            return "".join(f'"{name}" ""\n' for (name,) in names)
