"""Real calendars: every file is imported or reported entry by entry, and nothing raises."""

import json
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner

from client.__main__ import client as command
from client.calendar_files import CalendarFile, Window
from client.calendar_text import calendars_of
from client.entries import Entry, Item
from client.event import Placing
from local.programs import Program
from tests.client import sdists

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ZONE = ZoneInfo("Europe/Berlin")
WINDOW = Window(
    start=datetime(2019, 3, 1, tzinfo=UTC), end=datetime(2019, 5, 1, tzinfo=UTC), for_all=False
)
FINE = {"UNREADABLE", "INVALID_FIELD", "TIME_RANGE_CONFLICT"} | {
    *("CREATED", "UPDATED", "UNCHANGED", "STALE", "CANCELLED", "NOT_STORED"),
    *("NOT_AN_EVENT", "OUTSIDE", "SUPERSEDED"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sdists.calendars(tmp_path_factory.mktemp("sdists"))


def items_of(path: Path) -> list[Item]:
    with path.open("rb") as file:
        return list(CalendarFile(file, ZONE, Placing(), WINDOW).items())


def test_every_event_is_an_entry_or_is_reported(files: list[Path]) -> None:
    assert len(files) > 200
    entries = 0
    for path in files:
        with path.open("rb") as file:
            lines = {event.line for calendar in calendars_of(file) for event in calendar.events}
        items = items_of(path)
        assert lines <= {item.line for item in items}, path
        ids = [item.appointment.id for item in items if isinstance(item, Entry)]
        assert len(ids) == len(set(ids)), path
        entries += len(ids)
    assert entries > 500


def test_every_file_is_imported_and_again(
    files: list[Path], service: Program, organization: str, tmp_path: Path
) -> None:
    """A second import changes nothing, and the service has an answer to every entry."""
    for number, path in enumerate(files):
        arguments = [
            *("import", str(path), "--address", service.address, "--in-flight", "1"),
            *("--organization", f"{organization[:100]} {number}", "--time-zone", "Europe/Berlin"),
            *("--from", "2019-03-01", "--to", "2019-05-01"),
            *("--report", str(tmp_path / "report"), "--progress", str(tmp_path / "progress")),
        ]
        first, again = (CliRunner().invoke(command, arguments) for _ in range(2))
        for done in (first, again):
            assert done.exit_code in (0, 1), (path, done.output, done.exception)
            assert set(counts(done.stdout)) <= FINE, (path, done.output)
        assert not {"CREATED", "UPDATED", "CANCELLED"} & set(counts(again.stdout)), (
            path,
            again.output,
        )
        reported = (tmp_path / "report").read_text() if (tmp_path / "report").exists() else ""
        assert all(json.loads(line)["line"] >= 1 for line in reported.splitlines())


def counts(output: str) -> dict[str, int]:
    first = output.splitlines()[0]
    if first == "no entries":
        return {}
    return {name: int(count.replace(",", "")) for count, name in map(str.split, first.split(", "))}
