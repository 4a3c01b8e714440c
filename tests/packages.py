"""Packages from the registry, for tests that install or read them as users get them."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

# What an environment with the stubs alone, or the client, does not have.
NOT_THERE = ("service", "gateway", "runtime", "public_json", "local", "demo", "psycopg", "aiohttp")


def pip(*arguments: str | Path) -> None:
    """Run pip. Skips the test if there is no network, but not in CI."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    offline = "connection" in done.stderr.lower()
    if done.returncode != 0 and offline and "CI" not in os.environ:
        pytest.skip("there is no network to get packages from")
    assert done.returncode == 0, done.stderr


def environment_with(directory: Path, *packages: str | Path) -> Path:
    """Return the Python of a new environment into which only these packages were installed."""
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    pip("--python", python, "install", "--quiet", "--prefer-binary", *packages)
    return python
