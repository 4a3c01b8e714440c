"""The OpenAPI document against the running gateway, by schemathesis with all its checks."""

import subprocess
import sys
from pathlib import Path

import pytest

from local.programs import Program

pytestmark = pytest.mark.slow

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.timeout(600)
def test_the_gateway_answers_as_its_document_says(gateway: Program, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis"))]
    command += ["--config-file", str(CONFIGURATION), "run", f"{gateway.url}/api/openapi.json"]
    command += [
        "--max-examples",
        "25",
        "--seed",
        "1",
        "--suppress-health-check",
        "all",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=580
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    # Thirteen routes of appointments and their calendar, availability among them, eight of
    # webhooks, two of operations, /healthz and /readyz.
    assert "25 selected / 25 total" in done.stdout, done.stdout[:2000]
