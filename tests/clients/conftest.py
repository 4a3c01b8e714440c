"""What generates, checks and runs clients: `.venv/clients`, which `make` keeps up to date."""

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from local.programs import ROOT, Program

ENVIRONMENT = ROOT / ".venv" / "clients"
PROGRAMS = Path(__file__).with_name("programs")

# The output of every program: it books, gets a conflict, lists, updates and cancels.
BOOKING = """\
booked a from 2030-01-07T08:00:00Z to 2030-01-07T08:30:00Z, version 1, revision 1, CREATED
refused, 409 TIME_RANGE_CONFLICT, by a from 2030-01-07T08:00:00Z to 2030-01-07T08:30:00Z
listed a at revision 1
changed to "Retrospective", floor 3, version 2, revision 2
refused, 412 ETAG_MISMATCH
read "Planning" as of revision 1
cancelled a, version 3, CANCELLED
history 1 CREATED, 2 UPDATED, 3 CANCELLED
"""

Run = Callable[..., str]


@pytest.fixture(scope="session")
def tools() -> Run:
    """Run a program of the environment, `tools("tsc", "--strict", cwd=...)`: its output."""
    _install()
    directories = (ENVIRONMENT / "bin", ENVIRONMENT / "node_modules" / ".bin")
    environment = {
        "PATH": os.pathsep.join([*map(str, directories), os.environ["PATH"]]),
        "NO_COLOR": "1",
        # They would call home.
        "REDOCLY_TELEMETRY": "off",
        "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true",
    }

    def run(*command: str | Path, cwd: Path) -> str:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    return run


def _install() -> None:
    """Make the environment if it is not there yet, in one process at a time."""
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    with ENVIRONMENT.with_name("clients.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = (ENVIRONMENT / "installed").relative_to(ROOT)
        made = subprocess.run(
            ["make", "--silent", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
    said = made.stderr.lower()
    if made.returncode and ("network" in said or "connection" in said) and "CI" not in os.environ:
        pytest.skip("there is no network to install the generators of clients from")
    assert made.returncode == 0, made.stderr


@pytest.fixture
def document(gateway: Program, tmp_path: Path) -> Path:
    """The OpenAPI document as the gateway serves it."""
    path = tmp_path / "openapi.json"
    with urlopen(f"{gateway.url}/api/openapi.json") as response:
        path.write_bytes(response.read())
    return path
