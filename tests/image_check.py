"""`make image-check`: build the image, and run it by a container engine as docker-compose.yml does.

Needs docker or podman. If no registry has the base, one is made of Debian's packages, which needs
mmdebstrap; its Python is Debian's. The build gets this machine's certificates and settings of pip.
"""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import pytest

from local.postgres import NOT_DURABLE, EmbeddedPostgres
from local.programs import ROOT

IMAGE = "localhost/appointments:check"
MAX_BYTES = 200 * 2**20
# Stands in for the base. Python 3.13.
DEBIAN = "trixie"
PACKAGES = "ca-certificates,netbase,python3-pip,python3-venv,tzdata"
# What official images leave out.
LEFT_OUT = ("doc", "info", "locale", "man")
FROM_THIS_MACHINE = [
    Path("/etc/ssl/certs"),
    Path("/etc/pip.conf"),
    Path.home() / ".config/pip/pip.conf",
]
START = 60.0  # seconds

pytestmark = pytest.mark.timeout(900)


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def found_engine() -> str:
    """Return the first engine that answers, empty if there is none."""
    for name in ("docker", "podman"):
        if shutil.which(name) and succeeds(name, "info"):
            return name
    return ""


ENGINE = found_engine()


def engine(*arguments: str | Path) -> str:
    """Return what the command prints. Its messages are shown if it fails."""
    done = subprocess.run(
        [ENGINE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"{ENGINE} {arguments[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.strip()


def base(tmp_path: Path) -> str:
    """Return the name of the Dockerfile's base, or of one of Debian's packages."""
    [name] = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    if succeeds(ENGINE, "pull", "--quiet", f"docker.io/library/{name}"):
        return f"docker.io/library/{name}"
    made = f"localhost/python:{DEBIAN}"
    click.echo(f"No registry has {name}: {made}, made of Debian's packages, is used instead.")
    if not succeeds(ENGINE, "image", "inspect", made):
        archive = tmp_path / "base.tar"
        options = ["--variant=minbase", f"--include={PACKAGES}"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in LEFT_OUT]
        subprocess.run(["mmdebstrap", "--quiet", *options, DEBIAN, str(archive)], check=True)
        engine("import", archive, made)
        archive.unlink()
    return made


def build_options() -> list[str]:
    """Return the options with which a build can install packages."""
    if ENGINE != "podman":  # Docker's builds have no mounts.
        return ["--network=host"]
    mounts = [f"--volume={path}:{path}:ro" for path in FROM_THIS_MACHINE if path.exists()]
    # Podman's images have a health check in this format only.
    return ["--network=host", *mounts, "--isolation=chroot", "--format=docker"]


def build_image(base_name: str) -> None:
    engine("build", *build_options(), f"--build-arg=PYTHON_IMAGE={base_name}", "-t", IMAGE, ".")


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the engine knows of the new image."""
    if not ENGINE:
        pytest.fail("there is no container engine: neither docker nor podman answers")
    name = base(tmp_path_factory.mktemp("base"))
    started = time.monotonic()
    build_image(name)
    [found] = json.loads(engine("image", "inspect", IMAGE))
    click.echo(f"Built in {time.monotonic() - started:.0f} s, {found['Size'] / 2**20:.0f} MiB.")
    assert isinstance(found, dict)
    return found


def test_it_is_small(image: dict[str, Any]) -> None:
    assert image["Size"] < MAX_BYTES


def test_it_says_what_it_is_and_how_it_runs(image: dict[str, Any]) -> None:
    config = image["Config"]
    labels = {name.rpartition(".")[2] for name in config["Labels"] if "opencontainers" in name}
    assert labels == {"title", "description", "version", "revision"}
    assert config["User"] == "10001"
    assert config["Cmd"] == ["python", "-m", "service"]
    assert config["StopSignal"] == "SIGTERM"
    # Where Docker has it, and where podman does.
    health_check = config.get("Healthcheck") or image["Healthcheck"]
    assert health_check["Test"] == ["CMD", "python", "-m", "runtime.health_check"]


def run(*command: str, **settings: str) -> list[str]:
    """Return the arguments of `run` for a container that has no more rights than it needs."""
    return [
        *("--network=host", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"),
        *(f"--env={name}={value}" for name, value in settings.items()),
        *(IMAGE, *command),
    ]


def test_it_contains_nothing_that_installs_or_changes_users(image: dict[str, Any]) -> None:
    unwanted = "apt apt-get perl pip pip3 su mount passwd cc strip"
    script = (
        "id -u; find / -xdev -perm /6000 -type f 2>/dev/null"
        f"; for name in {unwanted}; do command -v $name; done"
        "; touch /app/file 2>/dev/null && echo writable"
        "; python -c 'import pip' 2>/dev/null && echo pip; true"
    )
    assert engine("run", "--rm", *run("sh", "-c", script)) == "10001"


def test_what_runs_is_compiled(image: dict[str, Any]) -> None:
    """A module without bytecode would be compiled at each start, and for each health check."""
    code = (
        "import sys, pathlib, service.server, service.worker, gateway.app, runtime.health_check\n"
        "for module in list(sys.modules.values()):\n"
        "    if cached := getattr(module, '__cached__', None):\n"
        "        pathlib.Path(cached).exists() or print(module.__name__)"
    )
    assert engine("run", "--rm", *run("python", "-c", code)) == ""


@pytest.fixture
def free_port() -> Callable[[], str]:
    def find() -> str:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return str(listener.getsockname()[1])

    return find


@pytest.fixture
def postgres(reachable_path: Path, free_port: Callable[[], str]) -> Iterator[str]:
    """The URL of a new database."""
    port = free_port()
    settings = {**NOT_DURABLE, "listen_addresses": "127.0.0.1", "port": port}
    with EmbeddedPostgres(reachable_path / "postgres", settings) as server:
        server.create_database("appointments")
        yield f"postgresql://postgres@127.0.0.1:{port}/appointments"


def state(name: str) -> dict[str, Any]:
    [found] = json.loads(engine("inspect", name))
    assert isinstance(found, dict)
    return dict(found["State"])


def logs(name: str) -> str:
    done = subprocess.run([ENGINE, "logs", name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@contextmanager
def container(*command: str, **settings: str) -> Iterator[str]:
    """Run a program until the end of the block, and wait until its health check succeeds."""
    name = engine("run", "--detach", *run(*command, **settings))
    try:
        deadline = time.monotonic() + START
        while not succeeds(ENGINE, "exec", name, "python", "-m", "runtime.health_check"):
            if time.monotonic() > deadline or not state(name)["Running"]:
                pytest.fail(f"{command} is not healthy: {logs(name)}")
            time.sleep(0.2)
        yield name
        engine("stop", "--time=30", name)
        assert state(name)["ExitCode"] == 0, logs(name)
    finally:
        engine("rm", "--force", name)


def test_its_programs_run(
    image: dict[str, Any], postgres: str, free_port: Callable[[], str]
) -> None:
    migrated = engine("run", "--rm", *run("migrate", "--wait", DATABASE_URL=postgres))
    assert migrated.count("Applied: ") == len(list((ROOT / "migrations").glob("[0-9]*.sql")))
    grpc, http = free_port(), free_port()
    database = {"DATABASE_URL": postgres}
    service = container(**database, GRPC_PORT=grpc, METRICS_PORT="")
    worker = container(
        "python", "-m", "service", "worker", **database, WORKER_METRICS_PORT=free_port()
    )
    to_service = {"SERVICE_ADDRESS": f"127.0.0.1:{grpc}"}
    gateway = container(
        "python", "-m", "gateway", **to_service, GATEWAY_PORT=http, GATEWAY_METRICS_PORT=""
    )

    def post(day: int, **headers: str) -> int:
        """Send an appointment, and return the status of the response."""
        times = {"start": f"2030-01-0{day} 10:00", "end": f"2030-01-0{day} 11:00"}
        body = {"id": str(uuid4()), "resourceId": "chair 1", **times}
        connection = HTTPConnection("127.0.0.1", int(http), timeout=10)
        connection.request(
            "POST",
            "/api/appointments",
            json.dumps(body),
            {"Content-Type": "application/json", **headers},
        )
        return connection.getresponse().status

    with service, worker, gateway:
        assert [post(1), post(1), post(2)] == [201, 409, 201]
        # The worker applies it.
        assert post(3, Prefer="respond-async, wait=5") == 201
