"""Migrated databases for tests: migrated once per run, then copied."""

import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
from psycopg import sql

from local.postgres import NOT_DURABLE, EmbeddedPostgres, migrate
from local.programs import ROOT
from local.stack import DATABASE
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.distribution import VARIANTS
from service.postgres.session import CALLER_ROLE, Timeouts

AnyDatabase = TypeVar("AnyDatabase", bound=Database)

# A file system in memory. To make and to delete the thousand files of a data directory takes
# several times as long on a disk, even one that is never waited for.
IN_MEMORY = Path("/dev/shm")  # noqa: S108
# Bytes that have to be free there: each process of the suite has a server, whose WAL grows to 1 GB.
ROOM = 6 * 2**30


def data_directory() -> str:
    """Make a directory for servers of tests; its name is short, as paths of Unix sockets are."""
    roomy = IN_MEMORY.is_mount() and shutil.disk_usage(IN_MEMORY).free > ROOM
    roomy = roomy and psutil.virtual_memory().available > ROOM
    return tempfile.mkdtemp(prefix="appointments-", dir=IN_MEMORY if roomy else None)


@contextmanager
def temporary_data_directory() -> Iterator[Path]:
    """The same, and it is gone in the end."""
    path = Path(data_directory())
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _SmallPostgres(EmbeddedPostgres):
    """A server with a small data directory, which is fast to copy."""

    def _initialization(self) -> list[str]:
        return [*super()._initialization(), "--wal-segsize", "1"]


class Clusters:
    """Data directories with the database `appointments`, one migrated and one empty.

    They are made by the first process of the run that asks. A server on a copy starts in a
    fraction of the time that `initdb` and the migrations take.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def copy_to(self, data: Path, *, migrated: bool) -> None:
        """Create the data directory of a server that was never started."""
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            original = self._migrated() if migrated else self._empty()
        _copy(original, data)

    def _empty(self) -> Path:
        path = self._directory / "empty"
        if not path.exists():
            unfinished = _SmallPostgres(self._directory / "unfinished", NOT_DURABLE)
            with unfinished:
                unfinished.create_database(DATABASE)
            unfinished.directory.rename(path)
        return path

    def _migrated(self) -> Path:
        path = self._directory / "migrated"
        if not path.exists():
            unfinished = _SmallPostgres(self._directory / "unfinished", NOT_DURABLE)
            _copy(self._empty(), unfinished.directory)
            with unfinished:
                migrate(unfinished.url(DATABASE))
            unfinished.directory.rename(path)
        return path


class Databases:
    """Copies of one migrated database. Nothing may be connected to it while it is copied."""

    def __init__(self, server: str, template: str) -> None:
        self._server = server
        self._template = template

    @contextmanager
    def copied(self) -> Iterator[str]:
        """Yield the URL of a copy, which is dropped afterwards."""
        with new_database(self._server, template=self._template) as (_, url):
            yield url


class DistributedDatabase:
    """The only database of a cluster: its nodes do not get those that tests make."""

    def __init__(self, url: str) -> None:
        self._url = url

    @contextmanager
    def copied(self) -> Iterator[str]:
        """Yield the URL of the database, whose organizations keep tests apart."""
        yield self._url


@contextmanager
def new_database(server: str, *, template: str = "template1") -> Iterator[tuple[str, str]]:
    """Yield name and URL of a new database, which is dropped afterwards."""
    name = f"appointments_test_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(server, autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(create.format(identifier, sql.Identifier(template)))
        try:
            yield name, urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def apply_variants(url: str) -> None:
    """Give a migrated database the functions for Citus. The extension is not needed."""
    with psycopg.connect(url) as connection:
        connection.execute((ROOT / VARIANTS).read_bytes())


def database_of(
    kind: type[AnyDatabase],
    url: str,
    metrics: Metrics,
    *,
    role: str = CALLER_ROLE,
    connections: int = 1,
    max_waiting: int = 1,
    connection_timeout: float = 5,
    distributed: bool | None = None,
) -> AnyDatabase:
    """Return the service's connections to a primary, not opened yet.

    `distributed` None: as the databases of this run are.
    """
    if distributed is None:
        distributed = bool({"TEST_DISTRIBUTED", "TEST_CITUS_URL"} & os.environ.keys())
    return kind(
        url,
        name="test",
        connections=connections,
        max_waiting=max_waiting,
        timeouts=Timeouts(connection=connection_timeout, lock=5, statement=5),
        role=role,
        replica=False,
        metrics=metrics,
        distributed=distributed,
    )


def _copy(original: Path, copy: Path) -> None:
    """Copy a data directory and keep its owner, PostgreSQL's user."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", os.fspath(original), os.fspath(copy)], check=True)
