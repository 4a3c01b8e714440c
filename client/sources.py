"""Files to import: which reader reads them, and how far it is."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from client.entries import Items

FORMATS = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "ics": (".ics", ".ical", ".icalendar"),
}
STANDARD = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Items of a file. `position` returns how much is read, and of how much if that is known."""

    items: Items
    position: Callable[[], tuple[int, int | None]]


def format_of(name: str, given: str | None) -> str:
    """Return the format that is given, or else that of the name. Raises UsageError."""
    suffix = Path(name).suffix.lower()
    found = given or next((key for key, known in FORMATS.items() if suffix in known), None)
    if found is None and name == STANDARD:
        return "jsonl"
    if found is None:
        raise click.UsageError(f"the name of {name} does not say its format: add --format")
    return found


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """Open a file, or standard input."""
    if name == STANDARD:
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115  closed below
    except OSError as error:
        raise click.UsageError(f"{name} cannot be read: {error.strerror}") from error
    with file:
        yield file


def position_in(file: BinaryIO) -> Callable[[], tuple[int, int | None]]:
    """Return what tells how many bytes are read."""
    if not file.seekable():
        return lambda: (0, None)
    size = os.fstat(file.fileno()).st_size
    return lambda: (file.tell(), size)
