"""`make run`: the whole service on this machine, until Ctrl-C.

The data stays in `.data/postgres` (RUN_DATA_DIR) and is there again the next time; with
DATABASE_URL that server is used instead. The settings of both programs are taken from
the environment (GRPC_PORT, GATEWAY_PORT, LOG_LEVEL, ...).
"""

import contextlib
import os
import queue
import signal
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Never

from pydantic import ValidationError
from rich.console import Console

import gateway.settings
import service.settings
from local.postgres import EmbeddedPostgres
from local.programs import ROOT, Program, StartError
from local.stack import Stack, running
from runtime.settings import faults

# There is no authentication, so what is tried out is not shown to the network.
ON_LOOPBACK = {"GRPC_HOST": "127.0.0.1", "GATEWAY_HOST": "127.0.0.1"}


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    ended: queue.SimpleQueue[Program] = queue.SimpleQueue()

    wrong = mistakes()
    if wrong:
        print(f"make run: {'; '.join(wrong)}", file=sys.stderr)
        return 1
    for name, meant in misspelt(os.environ):
        console.print(f"{name} is no setting: is {meant} meant?", style="yellow")
    postgres = None
    if not os.environ.get("DATABASE_URL"):
        postgres = EmbeddedPostgres(Path(os.environ.get("RUN_DATA_DIR") or ROOT / ".data/postgres"))
    try:
        with (
            stopping_on_signals(),
            running(
                postgres=postgres,
                settings={**ON_LOOPBACK, "LOG_FORMAT": "text", **os.environ},
                on_step=lambda step: console.print(f"{step} ...", style="dim"),
                stdout=None,  # the programs write to the terminal themselves
                on_errors=show_errors,
                on_exit=ended.put,
            ) as stack,
        ):
            console.print(welcome(stack), markup=False)
            _fail_when_one_ends(ended)
    except KeyboardInterrupt:
        try:
            console.print("stopped", style="dim")
        except OSError:
            # The terminal is closed. What its buffer still holds must not fail at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except StartError as error:
        sys.stdout.flush()
        print(f"make run: {error}", file=sys.stderr)
        return 1


def _fail_when_one_ends(ended: queue.SimpleQueue[Program]) -> Never:
    program = ended.get()
    raise StartError(f"{program.name} ended by itself: {program.last_words()}")


def mistakes() -> list[str]:
    """What the programs would say of their settings in the environment, each once."""
    said: dict[str, None] = {}
    # Of the embedded server's database the URL is not known yet.
    url = os.environ.get("DATABASE_URL") or "postgresql://"
    try:
        service.settings.Settings(database_url=url)
    except ValidationError as error:
        said |= dict.fromkeys(faults(error))
    try:
        gateway.settings.Settings()
    except ValidationError as error:
        said |= dict.fromkeys(faults(error))
    return list(said)


def misspelt(environment: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Variables that are no settings but nearly named as one, each with that one."""
    models = (service.settings.Settings, gateway.settings.Settings)
    names = {name.upper() for model in models for name in model.model_fields}
    for name in environment:
        if name not in names and (near := get_close_matches(name, names, n=1, cutoff=0.9)):
            yield name, near[0]


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP ends the block; later ones do not disturb its end."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, stop)
    yield


def show_errors(name: str, lines: list[str]) -> None:
    """Print what a program writes to standard error; where nothing can be printed it is lost."""
    with contextlib.suppress(OSError):
        print("\n".join(f"{name} {line}" for line in lines), flush=True)


def welcome(stack: Stack) -> str:
    """Where everything is, and two commands to try."""
    rest, grpc = f"http://localhost:{stack.gateway.port}", f"localhost:{stack.service.port}"
    url = '"$DATABASE_URL"' if os.environ.get("DATABASE_URL") else f"'{stack.database_url}'"
    body = '{"id":"1","start":"2030-01-01 10:00","end":"2030-01-01 10:30","title":"First"}'

    def metrics(program: Program) -> str:
        port = program.metrics_port
        where = f"http://localhost:{port}/metrics" if port else "none"
        return f"{where} ({program.name})"

    return f"""
  REST       {rest}/api/appointments
  API docs   {rest}/api/docs
  gRPC       {grpc}, with reflection
  metrics    {metrics(stack.service)}
             {metrics(stack.worker)}
             {metrics(stack.gateway)}
  database   psql {url}

  Try:
  curl -i {rest}/api/appointments -H 'Content-Type: application/json' -d '{body}'
  .venv/bin/python examples/client.py {grpc}

  Ctrl-C stops everything; the data stays.
"""


if __name__ == "__main__":
    sys.exit(main())
