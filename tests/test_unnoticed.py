"""The suite fails on errors that are never retrieved. Each kind is tested in a separate run."""

import subprocess
import sys
from pathlib import Path

import pytest

from local.programs import ROOT

pytestmark = pytest.mark.slow

FAIL = """
import asyncio, gc, pytest
async def fail():
    raise KeyError("left")
async def leave():
    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    del task
    gc.collect()
    await asyncio.sleep(0)
"""
LEFT = {
    "in a test": "async def test_it(): await leave()",
    "by a fixture of the module": """
@pytest.fixture(scope="module")
def thing():
    yield
    asyncio.run(leave())
def test_it(thing): pass
""",
    "never awaited": "def test_it(): fail(); gc.collect()",
    "pending": """
def test_it():
    loop = asyncio.new_event_loop()
    loop.create_task(asyncio.sleep(9))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    del loop
    gc.collect()
""",
}


@pytest.mark.parametrize("left", LEFT)
def test_the_suite_fails_on_what_is_left(left: str, tmp_path: Path) -> None:
    path = tmp_path / "test_left.py"
    path.write_text(FAIL + LEFT[left])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.conftest", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "KeyError" in done.stdout or "never awaited" in done.stdout or "pending" in done.stdout
