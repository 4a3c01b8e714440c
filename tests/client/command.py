"""Runs `python -m client` as a user does."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.programs import ROOT
from local.stack import base_environment

PROGRAMME = ROOT / "tests" / "data" / "fosdem-2023.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    output: str
    errors: str

    @property
    def counts(self) -> dict[str, int]:
        """The entries by what became of them."""
        counted = self.output.splitlines()[0].removeprefix("would be ").split(", ")
        return {name: int(count.replace(",", "")) for count, name in map(str.split, counted)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """The client, with the address and the organization of a test."""

    address: str
    organization: str
    directory: Path

    def start(
        self, *arguments: str, variables: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a command in the directory."""
        return subprocess.Popen(
            [sys.executable, "-m", "client", *arguments],
            cwd=self.directory,
            env={
                **base_environment(),
                "PYTHONPATH": str(ROOT),
                "APPOINTMENTS_ADDRESS": self.address,
                "APPOINTMENTS_ORGANIZATION": self.organization,
                **(variables or {}),
            },
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **options,
            },
        )

    def run(
        self, *arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None
    ) -> Done:
        """Run a command. It never prints a traceback."""
        process = self.start(*arguments, variables=variables, stdin=subprocess.PIPE)
        output, errors = process.communicate(stdin, timeout=100)
        assert b"Traceback" not in errors, errors.decode()
        return Done(code=process.returncode, output=output.decode(), errors=errors.decode())

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file to import."""
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def report(self, name: str) -> list[dict[str, Any]]:
        """Return the report of an import."""
        path = self.directory / f"{name}.report.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]
