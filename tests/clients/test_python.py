"""A client in Python, generated from the document, checked strictly, and used."""

from pathlib import Path

import pytest

from local.programs import Program
from tests.clients.conftest import BOOKING, PROGRAMS, Run


@pytest.mark.timeout(600)
def test_the_generated_client_books(
    tools: Run, document: Path, gateway: Program, organization: str
) -> None:
    place = document.parent
    options = ("--path", document, "--output-path", "generated", "--fail-on-warning")
    said = tools("openapi-python-client", "generate", *options, cwd=place)
    assert said == "Generating generated\n"
    program = place / "generated" / "booking.py"
    program.write_text((PROGRAMS / "booking.py").read_text())
    tools("mypy", "--strict", "booking.py", "appointments_client", cwd=program.parent)
    # The gateway of the tests has no access control, so any token does.
    done = tools("python", program, gateway.url, organization, "any", cwd=place)
    assert done == BOOKING
