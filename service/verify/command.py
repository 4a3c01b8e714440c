"""`python -m service verify`: the arguments, the output and the exit codes."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import psycopg

from service.postgres.schema import SchemaOutdated
from service.postgres.session import DatabaseUnfit
from service.verify.checks import all_checks
from service.verify.digests import Digests
from service.verify.findings import Findings, printable
from service.verify.snapshot import Part, Stored, snapshot_of

SOUND = 0
UNSOUND = 1
NOT_CHECKED = 2

# Standbys end a query that keeps them from replaying what the primary has removed.
_RECOVERY_CONFLICT = (
    "; the standby would have had to wait: try again, or raise max_standby_streaming_delay or set"
    " hot_standby_feedback there"
)


class NotChecked(Exception):
    """The database could not be checked. The message says why."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments. Exits with code 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m service verify",
        description="Check the database of DATABASE_URL, which may be a standby. It only reads."
        " The exit code is 0 if the database is sound, 1 if something was found, and 2 if it"
        " could not be checked.",
    )
    parser.add_argument("--organization", metavar="ID", help="check this organization only")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "--limit",
        type=_count,
        default=100,
        metavar="N",
        help="print at most N findings, and count the rest (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def verify(url: str, arguments: argparse.Namespace) -> int:
    """Check the database, print what is found, and return the exit code.

    Raises NotChecked.
    """
    progress = Progress(sys.stderr)
    try:
        findings, stored, digests = _check(url, arguments.organization, arguments.limit, progress)
    except (DatabaseUnfit, SchemaOutdated) as error:
        raise NotChecked(str(error)) from error
    except psycopg.Error as error:
        reason = printable(" ".join(str(error).split()))
        if error.sqlstate == "40001":
            reason += _RECOVERY_CONFLICT
        raise NotChecked(f"the database of DATABASE_URL cannot be read: {reason}") from error
    finally:
        progress.clear()
    shown = _json if arguments.json else _text
    sys.stdout.write(f"{shown(findings, stored, digests)}\n")
    return UNSOUND if findings.total else SOUND


def _check(
    url: str, organization_id: str | None, most: int, progress: "Progress"
) -> tuple[Findings, Stored, Digests]:
    findings, digests = Findings(most=most), Digests()
    with snapshot_of(url) as snapshot:
        parts = snapshot.parts(organization_id)
        stored = snapshot.stored(parts)
        if organization_id is not None and not (stored.organizations or stored.changes):
            raise NotChecked(f"nothing is stored of the organization {organization_id!r}")
        checks = all_checks(digests)
        progress.total = sum(part.changes for part in parts) * len(checks)
        for part in parts:
            for check in checks:
                progress.begin(check.title, part)
                for finding in check.find(snapshot, part):
                    findings.add(finding)
                progress.end(part)
    return findings, stored, digests


def _text(findings: Findings, stored: Stored, digests: Digests) -> str:
    lines = [str(finding) for finding in findings.first]
    if findings.not_kept:
        lines.append(f"... and {findings.not_kept:,} more")
    if findings.total:
        counts = (f"{count:,} {check}" for check, count in sorted(findings.counts.items()))
        lines.append(f"found: {', '.join(counts)}")
    lines.append(
        f"{'unsound' if findings.total else 'sound'}: organizations {stored.organizations:,},"
        f" appointments {stored.appointments:,}, changes {stored.changes:,};"
        f" digests computed again {digests.recomputed:,}, not computable"
        f" {digests.not_recomputed:,}"
    )
    return "\n".join(lines)


def _json(findings: Findings, stored: Stored, digests: Digests) -> str:
    result: dict[str, Any] = {
        "sound": not findings.total,
        "organizations": stored.organizations,
        "appointments": stored.appointments,
        "changes": stored.changes,
        "digestsRecomputed": digests.recomputed,
        "digestsNotRecomputed": digests.not_recomputed,
        "counts": dict(sorted(findings.counts.items())),
        "findings": [finding.as_json() for finding in findings.first],
    }
    return printable(json.dumps(result, ensure_ascii=False))


class Progress:
    """One line on a terminal that says what is being checked; nothing elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream if stream.isatty() else None
        self._done = 0
        self.total = 0

    def begin(self, title: str, part: Part) -> None:
        if self._stream is not None:
            share = self._done / self.total if self.total else 0
            self.clear()
            self._stream.write(f"{share:4.0%} {title} from organization {part.first!r} on")
            self._stream.flush()

    def end(self, part: Part) -> None:
        self._done += part.changes

    def clear(self) -> None:
        if self._stream is not None:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
