"""The calendars with which icalendar and recurring-ical-events are tested, of their own sources."""

import re
import tarfile
from pathlib import Path

from local.programs import ROOT
from tests.packages import pip

PACKAGES = ("icalendar", "recurring-ical-events")


def pinned(name: str) -> str:
    """Return the requirement of a package, with its hashes, from the lock file."""
    lock = (ROOT / "requirements-dev.txt").read_text()
    found = re.search(rf"(?m)^{name}==\S+ \\\n(?:    --hash=\S+(?: \\)?\n)+", lock)
    assert found, name
    return found[0]


def calendars(directory: Path) -> list[Path]:
    """Download the source distributions, and return their calendars."""
    requirements = directory / "requirements.txt"
    requirements.write_text("".join(map(pinned, PACKAGES)))
    pip(
        *("download", "--quiet", "--no-deps", "--no-binary", ",".join(PACKAGES)),
        *("--require-hashes", "--requirement", requirements, "--dest", directory),
    )
    for archive in directory.glob("*.tar.gz"):
        with tarfile.open(archive) as tar:
            tar.extractall(directory, filter="data")
    return sorted(directory.rglob("*.ics"))
