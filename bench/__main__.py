"""`python -m bench`: measure, print a table, and write the results as JSON."""

import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

import click
from rich.console import Console

from bench.eventual import accepted_by, eventual_runs, missing
from bench.generators import wrk_is_installed
from bench.measure import runs, warm_up
from bench.plan import GROUPS, Group, plan
from bench.report import Row, rows, table
from bench.stack import database, stack
from bench.stored import overlapping
from local.programs import ROOT, StartError
from local.rabbitmq import server_script

progress = Console(stderr=True)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer loads, one round, one second each.")
@click.option("--rounds", type=click.IntRange(1), help="Runs of each load.  [default: 3]")
@click.option("--seconds", type=click.IntRange(1), help="Length of a run.  [default: 2]")
@click.option("--only", type=click.Choice(GROUPS), multiple=True, help="A group of loads.")
@click.option("--set", "settings", nargs=2, multiple=True, help="A setting of service and gateway.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the results there.")
def main(
    *,
    quick: bool,
    rounds: int | None,
    seconds: int | None,
    only: tuple[str, ...],
    settings: tuple[tuple[str, str], ...],
    path: Path | None,
) -> None:
    """Measure service and gateway, and compare with the database alone and with empty servers.

    The exit code is 1 if active appointments overlap afterwards or accepted writes are missing.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rounds = rounds or (1 if quick else 3)
    seconds = seconds or (1 if quick else 2)
    given = dict(settings)
    groups = [
        replace(group, settings={**given, **group.settings})
        for group in plan(quick=quick)
        if not only or group.name in only
    ]
    if not wrk_is_installed():
        progress.print("wrk is missing (apt-get install wrk): skipping the loads that need it")
        groups = [without for group in groups if (without := group.without_wrk()).loads]
    if server_script() is None:
        progress.print("rabbitmq-server is missing: skipping the loads that need it")
        groups = [group for group in groups if group.settings.get("OPERATION_QUEUE") != "rabbitmq"]
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=data) as name:
            Path(name).chmod(0o711)  # PostgreSQL may run as another user
            found, overlaps, unapplied = _measure(
                groups, Path(name), rounds=rounds, seconds=seconds
            )
    except StartError as error:
        sys.exit(f"error: {error}")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    shown = table(found)
    shown.title = f"{machine}; median of {rounds} x {seconds} s; limits are dim"
    shown.caption = f"Overlapping active appointments in the database afterwards: {overlaps}"
    shown.caption += f"; accepted writes that were not applied: {unapplied}"
    needed = Console(width=1_000).measure(shown).maximum
    Console(width=max(Console().width, needed)).print(shown)
    if path is not None:
        results = {
            "machine": machine,
            "rounds": rounds,
            "seconds": seconds,
            "settings": given,
            "overlapping": overlaps,
            "missing": unapplied,
            "rows": [asdict(row) for row in found],
        }
        path.write_text(json.dumps(results, indent=1))
    sys.exit(1 if overlaps or unapplied else 0)


def _measure(
    groups: Sequence[Group], directory: Path, *, rounds: int, seconds: int
) -> tuple[list[Row], int, int]:
    """Return all rows, the number of overlaps, and the number of writes not applied."""
    found: list[Row] = []
    accepted: dict[str, int] = {}
    with database(directory) as (url, postgres):
        for settings, same_settings in groupby(groups, key=lambda group: group.settings):
            with stack(url, postgres, settings, directory) as running:
                warm_up(running)
                for group in same_settings:
                    progress.print(f"{group.title} ...")
                    of_group = eventual_runs if group.name == "eventual" else runs
                    measured = list(of_group(group, running, rounds=rounds, seconds=seconds))
                    accepted |= accepted_by(measured)
                    found += rows(group, measured, running.peak_mib())
        return found, overlapping(url), missing(url, accepted)


if __name__ == "__main__":
    main()
