"""`python -m bench.idle`: the CPU time of service, worker and gateway while nobody calls.

They run with the default settings and have served some calls before, so that their connections
are open. Prints the share of one core by program, and that of PostgreSQL, which is not part of
the sum.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click

from bench.measure import warm_up
from bench.stack import Stack, database, stack
from local.programs import ROOT

PROGRAMS = ("service", "worker", "gateway")
SETTLING = 5.0  # seconds after the last call


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=20.0, show_default=True)
def main(*, rounds: int, seconds: float) -> None:
    """Measure; a share is the median of the rounds' own."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="idle-", dir=data) as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        with (
            database(directory) as (url, postgres),
            stack(url, postgres, {}, directory) as running,
        ):
            running.worker.start()
            warm_up(running)
            time.sleep(SETTLING)
            shares = [_shares(running, seconds) for _ in range(rounds)]
    for program in (*PROGRAMS, "postgresql"):
        print(f"{program}: {_text([each[program] for each in shares])}")  # noqa: T201
    total = [sum(each[program] for program in PROGRAMS) for each in shares]
    print(f"service, worker and gateway: {_text(total)} of a core")  # noqa: T201


def _shares(running: Stack, seconds: float) -> dict[str, float]:
    before, began = running.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return {name: spent / took for name, spent in running.cpu_seconds_since(before).items()}


def _text(shares: Sequence[float]) -> str:
    return f"{median(shares):.2%} ({min(shares):.2%} to {max(shares):.2%})"


if __name__ == "__main__":
    main()
