"""`python -m client export`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import click
from appointments.v1.appointment_pb2 import Appointment

from client.calendar_export import calendar_lines
from client.csv_files import csv_lines
from client.errors import INTERRUPTED, USAGE, CommandError
from client.exporting import appointments_of
from client.json_lines import json_lines
from client.service import Address, connected
from client.sources import FORMATS, STANDARD, format_of
from client.stopping import stopped_by_signals

_WRITERS: Mapping[str, Callable[[Iterable[Appointment]], Iterator[str]]] = {
    "jsonl": json_lines,
    "csv": csv_lines,
    "ics": calendar_lines,
}


@click.command("export")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@Address.options
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), help="[default: by name]")
@click.option("--as-of-revision", type=click.IntRange(0), help="As it was right after it.")
@click.option("--include-cancelled", is_flag=True, help="What occupies nothing too.")
def export_command(
    file: str,
    format_: str | None,
    as_of_revision: int | None,
    include_cancelled: bool,
    **address: Any,  # noqa: ANN401  the options of Address
) -> None:
    """Export all appointments of the organization to FILE; - is standard output.

    FILE is replaced when everything is there, so it is never half an export.
    """
    to = Address(**address)
    format_ = format_of(file, format_)
    counter = count()
    with stopped_by_signals() as stop, connected(to, stop) as service, _written(file) as output:
        appointments = appointments_of(
            service, as_of_revision=as_of_revision, include_cancelled=include_cancelled
        )
        counted = (appointment for appointment, _ in zip(appointments, counter, strict=False))
        for text in _WRITERS[format_](counted):
            output.write(text)
            if stop.is_set():
                raise CommandError("interrupted; nothing was exported", INTERRUPTED)
    click.echo(f"{next(counter):,} exported", err=file == STANDARD)


@contextmanager
def _written(name: str) -> Iterator[TextIO]:
    """Yield a text file that takes its name when the block ends without an error."""
    if name == STANDARD:
        with open(sys.stdout.fileno(), "w", encoding="utf-8", newline="", closefd=False) as output:
            yield output
        return
    part = Path(f"{name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(name)
    except OSError as error:
        raise CommandError(f"{name} cannot be written: {error}", USAGE) from error
    finally:
        part.unlink(missing_ok=True)
