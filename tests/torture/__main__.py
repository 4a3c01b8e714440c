"""`python -m tests.torture`: run and check, or check a record again."""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from local.programs import StartError
from tests.torture.checker import check
from tests.torture.record import Record
from tests.torture.run import Plan, run

SHOWN = 20


def main() -> int:
    """Return 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--duration", type=float, default=60, help="seconds (60)")
    parser.add_argument("--faults", type=int, help="number of faults (one for 20 seconds)")
    parser.add_argument("--rate", type=float, default=200, help="calls in a second (200)")
    parser.add_argument("--clients", type=int, default=48, help="number of clients (48)")
    parser.add_argument("--seed", type=int, help="repeats the faults of a run")
    parser.add_argument("--kind", action="append", default=[], help="only this kind of fault")
    parser.add_argument("--record", type=Path, help="where the record is kept")
    parser.add_argument("--check", type=Path, metavar="RECORD", help="only check a record")
    options = parser.parse_args()
    if options.check:
        return _check(options.check)
    seed = options.seed if options.seed is not None else secrets.randbelow(2**32)
    faults = options.faults if options.faults is not None else round(options.duration / 20)
    plan = Plan(
        seed=seed,
        duration=options.duration,
        faults=faults,
        rate=options.rate,
        clients=options.clients,
        kinds=options.kind,
    )
    sys.stdout.write(f"SEED={seed}\n")
    record = options.record or Path(tempfile.gettempdir()) / f"torture-{seed}.jsonl"
    try:
        outcome = asyncio.run(run(plan, record))
    except StartError as error:
        sys.exit(f"error: {error}")
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit("stopped")
    for left_out in outcome.left_out:
        sys.stdout.write(f"LEFT OUT: {left_out}\n")
    for problem in outcome.problems:
        sys.stdout.write(f"FOUND: {problem}\n")
    sys.stdout.write(
        f"{outcome.calls:,} calls and {len(outcome.faults)} faults in {outcome.seconds:.0f} s;"
        f" the record is {record}\n"
    )
    return _check(record) or int(bool(outcome.problems))


def _check(path: Path) -> int:
    began = time.monotonic()
    report = check(Record(path))
    for finding in report.findings[:SHOWN]:
        sys.stdout.write(f"FOUND: {finding}\n")
    if len(report.findings) > SHOWN:
        sys.stdout.write(f"and {len(report.findings) - SHOWN} more\n")
    figures = ", ".join(f"{name}: {count:,}" for name, count in report.figures.items())
    sys.stdout.write(f"checked in {time.monotonic() - began:.0f} s: {figures}\n")
    sys.stdout.write(f"{len(report.findings)} findings\n")
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
