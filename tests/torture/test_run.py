"""A short run, and its record checked again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from local.programs import ROOT
from tests.torture.record import Record

pytestmark = pytest.mark.slow


def torture(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.torture", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_a_run_is_recorded_and_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "record"
    asked = ["--duration", "6", "--seed", "1", "--faults", "1", "--kind", "kill a program"]
    output = torture(*asked, "--record", str(path))
    assert "SEED=1\n" in output
    assert re.search(r": kill (service|gateway|worker) [01]\n", output)
    assert output.endswith("\n0 findings\n")
    record = Record(path)
    assert record.calls > 100
    assert len(record.faults) == 1
    # Both doors of both services, and every kind of call. Calendars are rare.
    calls = [call for _, calls in record.organizations() for call in calls]
    doors = {"grpc 0", "grpc 1", "rest 0", "rest 1"}
    assert {call.door for call in calls} == doors | {"receiver"}
    assert {call.request.kind for call in calls} - {"calendar"} == {
        *("write", "batch", "operation", "get", "list", "history", "changes", "availability"),
        *("watch", "replay", "operations", "delivery", "webhook"),
    }
    assert torture("--check", str(path)).endswith("\n0 findings\n")
