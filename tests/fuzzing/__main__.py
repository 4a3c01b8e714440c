"""`python -m tests.fuzzing [TARGET...] --seconds N`: fuzz, guided by coverage (libFuzzer).

Starts from the corpus. An input that shows a fault is written to the corpus, where the tests then
fail with it, and the exit code is 1. New inputs that reach more code are kept in `.data/fuzzing`.
"""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from local.programs import ROOT

CORPUS = Path(__file__).parent / "corpus"
NAMES = ("rest", "message", "text", "calendar")
SLOWEST = 5
"""Seconds that an input may take."""
MAX_BYTES = 4096


def fuzz(name: str, seconds: int) -> int:
    """Fuzz one target in a process of its own; return its exit code."""
    found = ROOT / ".data" / "fuzzing" / name
    found.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzzing.fuzzer",
            name,
            f"-max_total_time={seconds}",
            f"-timeout={SLOWEST}",
            f"-max_len={MAX_BYTES}",
            f"-artifact_prefix={CORPUS / name}/",
            "-print_final_stats=1",
            str(found),
            str(CORPUS / name),
        ],
        check=False,
        cwd=ROOT,
    ).returncode


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--seconds", type=click.IntRange(4), default=30, show_default=True)
def main(*, names: Sequence[str], seconds: int) -> None:
    """Fuzz all targets, or those named, for so many seconds in all, two at a time."""
    names = names or NAMES
    each = max(1, seconds * min(2, len(names)) // len(names))
    with ThreadPoolExecutor(2) as pool:
        codes = dict(zip(names, pool.map(lambda name: fuzz(name, each), names), strict=True))
    faulty = [name for name, code in codes.items() if code]
    if faulty:
        sys.exit(f"faults were found in {', '.join(faulty)}; see {CORPUS}")


if __name__ == "__main__":
    main()
