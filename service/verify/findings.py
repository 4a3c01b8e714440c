"""What a check finds, and the collection of findings, of which only the first are kept."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that cannot be, in an organization.

    `check` is one of the names in docs/operations.md. `appointment_id` and `revision` are None
    if it concerns none. Titles, attributes and actors are never part of `expected` and `stored`.
    """

    check: str
    organization_id: str
    appointment_id: str | None = None
    revision: int | None = None
    expected: str
    stored: str

    def __str__(self) -> str:
        """Return it as one line of printable characters. Ids are quoted as in JSON."""
        place = [f"organization {_quoted(self.organization_id)}"]
        if self.appointment_id is not None:
            place.append(f"appointment {_quoted(self.appointment_id)}")
        if self.revision is not None:
            place.append(f"revision {self.revision}")
        return (
            f"{self.check}: {', '.join(place)}: expected {_line(self.expected)},"
            f" stored {_line(self.stored)}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "organizationId": self.organization_id,
            "appointmentId": self.appointment_id,
            "revision": self.revision,
            "expected": self.expected,
            "stored": self.stored,
        }


@dataclass(slots=True, kw_only=True)
class Findings:
    """Keeps the first `most` findings, and counts all of them by check."""

    most: int
    first: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        self.counts[finding.check] += 1
        if len(self.first) < self.most:
            self.first.append(finding)

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def not_kept(self) -> int:
        return self.total - len(self.first)


def printable(text: str) -> str:
    """Return text whose control characters, which only SQL can have stored, are as in JSON.

    A terminal would obey them.
    """
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def _quoted(text: str) -> str:
    return printable(json.dumps(text, ensure_ascii=False))


def _line(text: str) -> str:
    """Return text on one line."""
    return printable(" ".join(text.split()))
