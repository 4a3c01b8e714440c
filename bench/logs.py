"""`python -m bench.logs`: what it costs that every request is logged.

It runs with LOG_LEVEL=warning and LOG_LEVEL=info in turn: `make run`, its output to a terminal (a
pty that is read as fast as possible) or to a file, or service and gateway alone, as JSON to files.
Prints requests a second and CPU time of either; bench/credentials.py describes what is printed of
the programs alone. The last lines are the CPU time of a line itself, which other programs disturb
less.
"""

import asyncio
import contextlib
import os
import pty
import re
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click

from bench.credentials import Caller, compare, subdirectory
from bench.generators import wrk
from bench.measured import GOOD
from bench.stack import cpu_seconds_of, database, stack
from bench.stored import preload
from bench.workload import Operation, Workload
from local.programs import ROOT, START_TIMEOUT, STOP_TIMEOUT, StartError
from local.stack import ANY_PORT, base_environment
from runtime.logs import WAIT, configure_logs, request_logger

LEVELS = ("warning", "info")
LOADS: Mapping[Operation, str] = {"upsert": "writes", "get": "reads"}
CONNECTIONS = 64
STORED = 1_000
NUMBERS = 1_000_000  # for each run, more than it can use
LAST_LINE = "Ctrl-C stops everything"
LINE = {
    "request_id": "0af7651916cd43dd8448eb211c80319c",
    "organization": "stored-17",
    "method": "GetAppointment",
    "http_method": "GET",
    "status": 200,
    "duration_ms": 12.345,
}
LINES = 5_000
KEPT = 64 * 1024  # bytes of a terminal, more than the welcome has


@click.command()
@click.option("--to", type=click.Choice(["terminal", "file", "json"]), default="terminal")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=2, show_default=True)
def main(*, to: str, rounds: int, seconds: int) -> None:
    """Compare the levels; a ratio is the median of the rounds' own."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="logs-", dir=data) as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        if to == "json":
            compare_programs(directory, rounds=rounds, seconds=seconds)
        else:
            compare_make_run(directory, to=to, rounds=rounds, seconds=seconds)
    for form in ("text", "json"):
        print(f"a line as {form}: {line_cost(form):.1f} µs")  # noqa: T201


def compare_programs(directory: Path, *, rounds: int, seconds: int) -> None:
    """Compare the levels of service and gateway with the default format, without `make run`."""
    with ExitStack() as parts:
        url, postgres = parts.enter_context(database(directory))
        preload(url, "stored", organizations=1, stored=STORED)
        callers = []
        for level in LEVELS:
            logs = subdirectory(directory, level)
            running = parts.enter_context(stack(url, postgres, {"LOG_LEVEL": level}, logs))
            callers.append(Caller(title=f"LOG_LEVEL={level}", running=running, headers={}))
        compare(callers, rounds=rounds, seconds=seconds)


def compare_make_run(directory: Path, *, to: str, rounds: int, seconds: int) -> None:
    """Compare the levels under `make run`, which passes the lines on."""
    with ExitStack() as parts:
        runs = {
            level: parts.enter_context(_running(level, directory, terminal=to == "terminal"))
            for level in LEVELS
        }
        for _, _, url in runs.values():
            preload(url, "stored", organizations=1, stored=STORED)
        for number, (operation, title) in enumerate(LOADS.items()):
            rates: dict[str, list[float]] = {level: [] for level in LEVELS}
            costs: dict[str, list[float]] = {level: [] for level in LEVELS}
            for each in range(rounds):
                for level, (pid, gateway, _) in runs.items():
                    work = Workload(
                        operation=operation,
                        organization="stored",
                        stored=STORED,
                        first=(number * rounds + each) * NUMBERS,
                    )
                    before = cpu_seconds_of(pid)
                    measured = wrk(gateway, work, connections=CONNECTIONS, seconds=seconds)
                    rate = measured.per_second(GOOD)
                    rates[level].append(rate)
                    spent = cpu_seconds_of(pid) - before
                    costs[level].append(spent / (rate * measured.seconds) * 1e6)
            for level in LEVELS:
                print(  # noqa: T201
                    f"{title} to a {to}, LOG_LEVEL={level}: {median(rates[level]):,.0f}/s,"
                    f" {median(costs[level]):.0f} µs CPU each"
                )
            quiet, loud = (rates[level] for level in LEVELS)
            ratio = median(b / a for a, b in zip(quiet, loud, strict=True))
            print(f"{title} to a {to}: {ratio:.2f} of the rate")  # noqa: T201


def line_cost(form: str) -> float:
    """Return the CPU time of a line in microseconds, with its share of the system call."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        configure_logs("gateway", level="info", format=form)
    log_request = request_logger()
    if log_request is None:
        raise RuntimeError("level info is not logged")

    async def measure() -> float:
        runs = timeit.repeat(
            lambda: log_request(dict(LINE)), number=LINES, repeat=20, timer=time.process_time
        )
        await asyncio.sleep(2 * WAIT)  # the last lines are written
        return min(runs) / LINES * 1e6

    return asyncio.run(measure())


@contextmanager
def _running(level: str, directory: Path, *, terminal: bool) -> Iterator[tuple[int, str, str]]:
    """`make run`: its process id, the gateway's address and the database's URL."""
    log = directory / f"{level}.log"
    with ExitStack() as stack:
        if terminal:
            ours, theirs = map(_closing(stack), pty.openpty())
            threading.Thread(target=_drain, args=(ours, log), daemon=True).start()
        else:
            theirs = stack.enter_context(log.open("wb")).fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "local.run"],
            cwd=ROOT,
            env={
                **base_environment(),
                **ANY_PORT,
                "LOG_LEVEL": level,
                "RUN_DATA_DIR": str(directory / level / "postgres"),
            },
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        stack.callback(process.wait, STOP_TIMEOUT)
        stack.callback(process.terminate)
        welcome = _welcome(process, log)
        port = re.search(r"REST +http://localhost:(\d+)", welcome)
        url = re.search(r"database +psql '(.*?)'", welcome)
        if port is None or url is None:
            raise StartError(f"not what `make run` says: {welcome}")
        yield process.pid, f"127.0.0.1:{port[1]}", url[1]


def _closing(stack: ExitStack) -> Callable[[int], int]:
    def close_later(descriptor: int) -> int:
        stack.callback(os.close, descriptor)
        return descriptor

    return close_later


def _drain(terminal: int, log: Path) -> None:
    """Read a terminal to its end; what comes first is kept."""
    with log.open("wb") as file, contextlib.suppress(OSError):
        while data := os.read(terminal, 65536):
            if file.tell() < KEPT:
                file.write(data)
                file.flush()


def _welcome(process: subprocess.Popen[bytes], log: Path) -> str:
    give_up = time.monotonic() + START_TIMEOUT
    while time.monotonic() < give_up and process.poll() is None:
        said = log.read_text(errors="replace") if log.exists() else ""
        if LAST_LINE in said:
            return said
        time.sleep(0.1)
    raise StartError(f"`make run` is not ready: {log.read_text(errors='replace')}")


if __name__ == "__main__":
    main()
