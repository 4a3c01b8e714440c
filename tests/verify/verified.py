"""Checks databases of tests, and undermines them."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from service.verify.command import parse, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The exit code and the printed result."""

    code: int
    result: dict[str, Any]

    @property
    def findings(self) -> list[tuple[str, str | None, int | None]]:
        """Return check, appointment and revision of each finding."""
        return [
            (found["check"], found["appointmentId"], found["revision"])
            for found in self.result["findings"]
        ]


def verified(url: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> Verified:
    """Check a database, as the command does."""
    capsys.readouterr()
    code = verify(url, parse(["--json", *arguments]))
    printed = capsys.readouterr()
    assert not printed.err
    return Verified(code=code, result=json.loads(printed.out))


def check_sound(url: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Assert that a database is sound, and return what was checked."""
    found = verified(url, capsys)
    assert (found.code, found.result["findings"]) == (0, []), found.result
    return found.result
