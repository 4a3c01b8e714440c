"""The client is installed with the stubs alone."""

import subprocess
from pathlib import Path

import pytest

from local.programs import ROOT
from local.stack import base_environment
from tests.client.command import Client
from tests.packages import NOT_THERE, environment_with

# Making the environment takes minutes on a loaded machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which only the client and the stubs were installed."""
    return environment_with(tmp_path_factory.mktemp("installed"), ROOT / "protos", ROOT / "client")


def run(python: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [python, *arguments],
        cwd=python.parent,
        env={**base_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_imports_and_exports_without_the_project(python: Path, client: Client) -> None:
    assert "import" in run(python, "-m", "client", "--help")
    file = client.write(
        "one.jsonl", '{"id":"a","start":"2030-01-07T10:00:00Z","end":"2030-01-07T10:30:00Z"}\n'
    )
    place = ("--address", client.address, "--organization", client.organization)
    assert run(python, "-m", "client", "import", str(file), *place) == "1 CREATED\n"
    assert '"id":"a"' in run(python, "-m", "client", "export", "-", *place)


def test_nothing_of_the_project_is_installed_with_it(python: Path) -> None:
    for name in NOT_THERE:
        found = run(
            python, "-c", f"import importlib.util; print(importlib.util.find_spec({name!r}))"
        )
        assert found == "None\n"
