"""`python -m client import`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from client.errors import INTERRUPTED, SOME_REFUSED
from client.importing import BATCH_SIZE, IN_FLIGHT, Importer
from client.progress import Progress
from client.reading import Reading
from client.report import Report
from client.service import Address, connected
from client.sources import STANDARD, Source, format_of, opened
from client.stopping import stopped_by_signals

# Everything else needs somebody's attention.
FINE = frozenset(
    {"CREATED", "UPDATED", "UNCHANGED", "STALE", "CANCELLED", "NOT_STORED"}
    | {"NOT_AN_EVENT", "OUTSIDE", "SUPERSEDED"}
)


class Session:
    """Shows, reports and records what becomes of each entry."""

    def __init__(self, source: Source, progress: Progress, report: Report, bar: Bar) -> None:
        self._source = source
        self._progress = progress
        self._report = report
        self._bar = bar
        self._task = bar.add_task("", total=None)
        self.skipped = report.skipped
        self.refused = report.refused

    def done(self, items: int, outcomes: Counter[str]) -> None:
        """Count, and save from time to time."""
        if self._progress.advance(items, outcomes):
            self._progress.save(self._report.size)
        read, total = self._source.position()
        description = f"{self._progress.items:,} entries"
        self._bar.update(self._task, completed=read, total=total, description=description)


@click.command("import")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@Address.options
@Reading.options
@click.option("--dry-run", is_flag=True, help="Have everything checked, and write nothing.")
@click.option(
    "--report", "report_path", type=click.Path(path_type=Path), help="[default: FILE.report.jsonl]"
)
@click.option(
    "--progress", "progress_path", type=click.Path(path_type=Path), help="[default: FILE.progress]"
)
@click.option("--restart", is_flag=True, help="Do not continue an import that was interrupted.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1000),
    default=BATCH_SIZE,
    show_default=True,
    help="The most appointments of a call.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 32),
    default=IN_FLIGHT,
    show_default=True,
    help="Calls at a time. With 1, the earlier of two entries that overlap is always stored.",
)
def import_command(  # noqa: PLR0917  the options of the command
    file: str,
    dry_run: bool,
    report_path: Path | None,
    progress_path: Path | None,
    restart: bool,
    batch_size: int,
    in_flight: int,
    **options: Any,  # noqa: ANN401  those of Address and Reading
) -> None:
    """Import the appointments of FILE; - is standard input.

    Exit codes: 0 if everything is stored, 1 if entries could not be read or were refused, which
    FILE.report.jsonl lists, 2 if the command or the file is wrong, 3 if the service fails, and 130
    if it was interrupted. Then the same command continues.
    """
    reading = Reading(**{each.name: options.pop(each.name) for each in fields(Reading)})
    to = Address(**options)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    format_ = format_of(file, reading.format)
    if report_path is None:
        report_path = Path("import.report.jsonl" if file == STANDARD else f"{file}.report.jsonl")
    if progress_path is None and file != STANDARD and not dry_run:
        progress_path = Path(f"{file}.progress")
    with stopped_by_signals() as stop, opened(file) as opened_file:
        source = reading.source(opened_file, format_)
        subject = {} if progress_path is None else _subject(Path(file), to, reading, format_)
        progress = Progress(progress_path, subject, restart=restart)
        if progress.items:
            console.print(f"continues after {progress.items:,} entries ({progress_path})")
        report = Report(report_path, console, keep=progress.report_size)
        with connected(to, stop) as service, _bar(console) as bar:
            importer = Importer(
                service,
                Session(source, progress, report, bar),
                dry_run=dry_run,
                batch_size=batch_size,
                in_flight=in_flight,
            )
            complete = False
            try:
                complete = importer.run(source.items, skip=progress.items)
            finally:
                report.close()
                if complete:
                    progress.remove()
                elif progress.items:
                    progress.save(report.size)
    _finish(progress, report, complete=complete, dry_run=dry_run)


def _subject(path: Path, to: Address, reading: Reading, format_: str) -> Mapping[str, Any]:
    """Return what has to be the same for an import to continue."""
    state = path.stat()
    return {
        "file": str(path.resolve()),
        "size": state.st_size,
        "modified": state.st_mtime_ns,
        "address": to.address,
        "organization": to.organization,
        "reading": str(reading),
        # It moves on every day, but only recurring events are expanded within it.
        "window": str(reading.window) if format_ == "ics" else "",
    }


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _finish(progress: Progress, report: Report, *, complete: bool, dry_run: bool) -> None:
    """Print the counts, and exit."""
    counts = sorted(progress.outcomes.items())
    would = "would be " if dry_run else ""
    said = ", ".join(f"{count:,} {name}" for name, count in counts) or "no entries"
    click.echo(f"{would}{said}")
    if report.size:
        click.echo(f"Details: {report.path}")
    if not complete:
        click.echo("interrupted; the same command continues", err=True)
        click.get_current_context().exit(INTERRUPTED)
    if progress.outcomes.keys() - FINE:
        click.get_current_context().exit(SOME_REFUSED)
