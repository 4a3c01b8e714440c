"""Linters find nothing in the OpenAPI document."""

import json
from pathlib import Path

import pytest

from tests.clients.conftest import Run

pytestmark = pytest.mark.timeout(600)


def test_spectral_finds_nothing(tools: Run, document: Path) -> None:
    (document.parent / "ruleset.yaml").write_text('extends: ["spectral:oas"]\n')
    options = ("--ruleset", "ruleset.yaml", "--fail-severity", "hint")
    said = tools("spectral", "lint", document.name, *options, cwd=document.parent)
    assert said == "No results with a severity of 'hint' or higher found!\n"


def test_redocly_finds_nothing(tools: Run, document: Path) -> None:
    options = ("--extends", "recommended", "--format", "json")
    said = tools("redocly", "lint", document.name, *options, cwd=document.parent)
    found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert found["problems"] == []
    assert found["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}
