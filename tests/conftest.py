"""The whole suite runs against a real PostgreSQL, a real service and a real gateway.

Tests share them: each takes an `organization` of its own, and nothing crosses
organizations. A test that stops or breaks something starts its own, with the factories.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.postgres import NOT_DURABLE, EmbeddedPostgres, migrate
from local.programs import Program
from local.rabbitmq import RabbitMQ, server_script
from local.stack import ANY_PORT, DATABASE, base_environment
from tests.api import Organization
from tests.databases import (
    Clusters,
    Databases,
    DistributedDatabase,
    apply_variants,
    data_directory,
    new_database,
    temporary_data_directory,
)
from tests.forking import ForkServer
from tests.operations.place import Place

StartProgram = Callable[..., Program]
OwnPostgres = Callable[..., EmbeddedPostgres]
CreateDatabase = Callable[[], str]

SHARED_DIRECTORY = pytest.StashKey[Path]()
# Fixtures that start something for a single test or module.
STARTERS = frozenset({"browser", "fork", "own_postgres", "rabbitmq", "start_run", "tools"})
LINES_SHOWN = 40
# The messages of asyncio and of the programs' logs about errors that were never retrieved.
UNNOTICED = (
    "exception was never retrieved",
    "was destroyed but it is pending",
    "was never awaited",
    "unhandled in the event loop",
)

# Every program that is running now or ended within the current test.
_programs: list[Program] = []


def pytest_configure(config: pytest.Config) -> None:
    """Create the directory that all processes of this run share. The first one removes it."""
    # A shell ignores Ctrl-C in what it runs in the background, and so would what tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given = getattr(config, "workerinput", {}).get("shared_directory")
    directory = Path(given or data_directory())
    config.stash[SHARED_DIRECTORY] = directory
    if not given:
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the directory to a worker of xdist."""
    node.workerinput["shared_directory"] = str(node.config.stash[SHARED_DIRECTORY])


def pytest_report_header() -> str:
    """Report which server is used, without its password."""
    form = " in the form for Citus" if os.environ.get("TEST_DISTRIBUTED") else ""
    for variable, what in (
        ("TEST_CITUS_URL", "one database"),
        ("TEST_DATABASE_URL", "new databases"),
    ):
        if url := os.environ.get(variable):
            host = urlsplit(url).hostname or "a Unix socket"
            return f"PostgreSQL: {what} on {host} ({variable}){form}"
    return f"PostgreSQL: embedded{form}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="leave out tests that start programs or servers of their own or are marked slow",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Apply --fast."""
    if not config.getoption("--fast"):
        return
    slow = [item for item in items if _is_slow(item)]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def _is_slow(item: pytest.Item) -> bool:
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return item.get_closest_marker("slow") is not None or not STARTERS.isdisjoint(fixtures)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report what was not tested, and why."""
    # The reason is the last of a skipped test's path, line and reason.
    skipped = Counter(report.longrepr[2] for report in terminalreporter.getreports("skipped"))
    if skipped:
        terminalreporter.section("NOT TESTED", red=True, bold=True)
    for reason, number in skipped.items():
        terminalreporter.line(
            f"{number} LEFT OUT: {reason.removeprefix('Skipped: ')}", red=True, bold=True
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the last log lines of the programs to the report of a failed test."""
    report = yield
    if report.failed:
        for program in _programs:
            lines = program.log_lines()[-LINES_SHOWN:]
            report.sections.append((f"log of {program.name}", "\n".join(lines)))
    if report.when == "teardown":
        _programs[:] = [program for program in _programs if program.process.poll() is None]
    return report


def unnoticed_failures(lines: Iterable[str]) -> list[str]:
    """Return the lines of a log about errors that were never retrieved."""
    return [line for line in lines if any(mark in line for mark in UNNOTICED)]


class Ear(logging.Handler):
    """Collects the reports of this process and the programs about errors never retrieved."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._heard: list[str] = []
        # The number of lines of each program that have been checked.
        self._read: dict[Program, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._heard += unnoticed_failures([record.getMessage()])

    def check(self) -> None:
        """Fail if anything was reported since the last time."""
        read, self._read = self._read, {}
        for program in {*_programs, *read}:
            lines = program.log_lines()
            self._heard += unnoticed_failures(lines[read.get(program, 0) :])
            if program in _programs:
                self._read[program] = len(lines)
        found, self._heard = self._heard, []
        assert not found, "\n".join(found)


@pytest.fixture(scope="session", autouse=True)
def ear() -> Iterator[Ear]:
    """Active from before the first fixture until after the last one."""
    ear = Ear()
    logging.getLogger("asyncio").addHandler(ear)
    yield ear
    logging.getLogger("asyncio").removeHandler(ear)
    ear.check()


@pytest.fixture(autouse=True)
def nothing_fails_unnoticed(ear: Ear) -> Iterator[None]:
    """Fail if errors were never retrieved by the end of a test, including those of fixtures."""
    yield
    ear.check()


@pytest.fixture(scope="session")
def temporary_directory() -> Iterator[Path]:
    """Yield a temporary directory with a path that is short enough for a Unix socket."""
    with temporary_data_directory() as path:
        yield path


@pytest.fixture
def reachable_path() -> Iterator[Path]:
    """A directory like `tmp_path`, for what PostgreSQL's user has to reach.

    Each start of pytest closes the directory above `tmp_path` to other users.
    """
    with tempfile.TemporaryDirectory(prefix="appointments-") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def clusters(pytestconfig: pytest.Config) -> Clusters:
    """Data directories to copy, which every process of the run shares."""
    return Clusters(pytestconfig.stash[SHARED_DIRECTORY])


@pytest.fixture(scope="session")
def databases(
    temporary_directory: Path, clusters: Clusters
) -> Iterator[Databases | DistributedDatabase]:
    """Databases on a server of this suite, or on that of TEST_DATABASE_URL.

    With TEST_DISTRIBUTED they have the functions of migrations/citus.sql, so that the service works
    with them as with a distributed database. With TEST_CITUS_URL there is only that one, which is
    distributed.
    """
    with ExitStack() as stack:
        if citus := os.environ.get("TEST_CITUS_URL"):
            migrate(citus)
            yield DistributedDatabase(citus)
            return
        server = os.environ.get("TEST_DATABASE_URL")
        if server:
            template, url = stack.enter_context(new_database(server))
            migrate(url)
        else:
            postgres = EmbeddedPostgres(temporary_directory / "postgres", NOT_DURABLE)
            clusters.copy_to(postgres.directory, migrated=True)
            server = stack.enter_context(postgres).url()
            template = DATABASE
            url = postgres.url(DATABASE)
        if os.environ.get("TEST_DISTRIBUTED"):
            apply_variants(url)
        yield Databases(server, template)


@pytest.fixture(scope="session")
def database_url(databases: Databases | DistributedDatabase) -> Iterator[str]:
    """The URL of a migrated database that is shared by tests that need no separate one."""
    with databases.copied() as url:
        yield url


@pytest.fixture(scope="module")
def create_database(databases: Databases | DistributedDatabase) -> Iterator[CreateDatabase]:
    """Create migrated databases for one test on the suite's server."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(databases.copied())


@pytest.fixture(scope="session")
def service(database_url: str) -> Iterator[Program]:
    """`python -m service` on free ports, for every test that does not harm it."""
    with ExitStack() as stack:
        yield listening(stack, new_process("service", {"DATABASE_URL": database_url}))


@pytest.fixture(scope="session")
def gateway(service: Program) -> Iterator[Program]:
    """`python -m gateway` on free ports, in front of `service`."""
    with ExitStack() as stack:
        yield listening(stack, new_process("gateway", {"SERVICE_ADDRESS": service.address}))


@pytest.fixture(scope="session")
def fork() -> Iterator[StartProgram]:
    """Start a program as `new_process` does, in a tenth of the time. See forking.py."""
    if sys.platform != "linux":
        yield new_process
        return
    with closing(ForkServer()) as server:
        environment = {**base_environment(), **ANY_PORT}
        yield lambda module, settings, *arguments: server.program(
            module, {**environment, **settings}, *arguments
        )


@pytest.fixture
def start_service(database_url: str, fork: StartProgram) -> Iterator[StartProgram]:
    """Start another service, `start_service(LOG_LEVEL="debug")`; it ends with the test."""
    with ExitStack() as stack:
        settings = {"DATABASE_URL": database_url}
        yield lambda **env: listening(stack, fork("service", {**settings, **env}))


@pytest.fixture
def start_worker(database_url: str, fork: StartProgram) -> Iterator[StartProgram]:
    """Start another worker; it ends with the test."""
    with ExitStack() as stack:
        settings = {"DATABASE_URL": database_url}
        yield lambda **env: listening(stack, fork("service", {**settings, **env}, "worker"))


@pytest.fixture
def worker(start_worker: StartProgram) -> Program:
    """A worker for `service`. It ends with the test, since it records expired holds."""
    return start_worker()


@pytest.fixture
def place(create_database: CreateDatabase, start_service: StartProgram) -> Iterator[Place]:
    url = create_database()
    service = start_service(DATABASE_URL=url)
    with grpc.insecure_channel(service.address) as channel:
        place = Place(url, service, channel)
        with place.sql:
            yield place


@pytest.fixture
def start_place_worker(place: Place, start_worker: StartProgram) -> Callable[..., Program]:
    """Start a worker on the database of `place`."""
    return lambda **env: start_worker(DATABASE_URL=place.url, **env)


@pytest.fixture
def start_gateway(request: pytest.FixtureRequest, fork: StartProgram) -> Iterator[StartProgram]:
    """Start another gateway, in front of `service` unless given a SERVICE_ADDRESS."""

    def start(**env: str) -> Program:
        if "SERVICE_ADDRESS" not in env:
            env["SERVICE_ADDRESS"] = request.getfixturevalue("service").address
        return listening(stack, fork("gateway", env))

    with ExitStack() as stack:
        yield start


@contextmanager
def postgres_starts(clusters: Clusters) -> Iterator[OwnPostgres]:
    """Yield a function that starts servers, which stop at the end. See own_postgres."""
    with ExitStack() as stack:

        def start(*, migrated: bool = True, **settings: str) -> EmbeddedPostgres:
            directory = stack.enter_context(temporary_data_directory())
            server = EmbeddedPostgres(directory / "postgres", {**NOT_DURABLE, **settings})
            clusters.copy_to(server.directory, migrated=migrated)
            stack.callback(server.stop, immediate=True)
            server.start()
            return server

        yield start


@pytest.fixture
def own_postgres(clusters: Clusters) -> Iterator[OwnPostgres]:
    """Start a server for one test, which may stop and start it again.

    `own_postgres()` has a migrated database, `own_postgres(migrated=False)` an empty one:
    `server.url("appointments")`. More arguments are settings of the server.
    """
    with postgres_starts(clusters) as start:
        yield start


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ node of this suite. A test that stops it must start it again.

    What needs it is left out where it is not installed; where CI is set it fails.
    """
    if server_script() is None and not os.environ.get("CI"):
        pytest.skip(
            "RabbitMQ is not installed (Debian and Ubuntu: apt install rabbitmq-server;"
            " its own node is not used)"
        )
    with temporary_data_directory() as directory:
        node = RabbitMQ(directory / "rabbitmq")
        try:
            node.start()
            yield node
        finally:
            node.stop()


@pytest.fixture
def organization(request: pytest.FixtureRequest) -> str:
    """An organization that no other test has."""
    return f"{request.node.name[:80]}-{uuid.uuid4()}"


@pytest.fixture(scope="session")
def channel(service: Program) -> Iterator[grpc.Channel]:
    """A channel to `service`."""
    with grpc.insecure_channel(service.address) as channel:
        yield channel


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> AppointmentServiceStub:
    """The RPCs of `service`, as blocking calls."""
    return AppointmentServiceStub(channel)


@pytest.fixture
def org(stub: AppointmentServiceStub, organization: str) -> Organization:
    """A fresh organization of `service`, with short calls."""
    return Organization(stub, organization)


def listening(stack: ExitStack, program: Program) -> Program:
    """The program once it listens; it ends with the stack, and its log is in reports."""
    _programs.append(program)
    stack.callback(program.stop)
    return program.wait_until_listening()


def new_process(module: str, settings: dict[str, str], *arguments: str) -> Program:
    """Run `python -m module` with these settings, on free ports unless they say others."""
    return Program(module, {**base_environment(), **ANY_PORT, **settings}, *arguments)
