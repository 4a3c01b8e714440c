"""`make run`: runs everything on this machine until Ctrl-C.

The data is kept in `.data/postgres` (RUN_DATA_DIR) for the next time. If DATABASE_URL is set,
that server is used instead. All programs take their settings from the environment (GRPC_PORT,
GATEWAY_PORT, LOG_LEVEL, ...).
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

# There is no authentication, so the programs listen on loopback by default.
ON_LOOPBACK = {"GRPC_HOST": "127.0.0.1", "GATEWAY_HOST": "127.0.0.1"}


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    ended: queue.SimpleQueue[Program] = queue.SimpleQueue()

    errors = setting_errors()
    if errors:
        print(f"make run: {'; '.join(errors)}", file=sys.stderr)
        return 1
    for name, similar in misspelled(os.environ):
        console.print(f"{name} is not a setting: did you mean {similar}?", style="yellow")
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
            # The terminal is closed. Flushing its buffer at exit must not fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except StartError as error:
        sys.stdout.flush()
        print(f"make run: {error}", file=sys.stderr)
        return 1


def _fail_when_one_ends(ended: queue.SimpleQueue[Program]) -> Never:
    program = ended.get()
    raise StartError(f"{program.name} ended unexpectedly: {program.exit_summary()}")


def setting_errors() -> list[str]:
    """Return the errors of both programs' settings in the environment, without duplicates."""
    errors: dict[str, None] = {}
    # The URL of the embedded server's database is not known yet.
    url = os.environ.get("DATABASE_URL") or "postgresql://"
    try:
        service.settings.Settings(database_url=url)
    except ValidationError as error:
        errors |= dict.fromkeys(faults(error))
    try:
        gateway.settings.Settings()
    except ValidationError as error:
        errors |= dict.fromkeys(faults(error))
    return list(errors)


def misspelled(environment: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield variables whose names are similar to that of a setting, with that setting."""
    models = (service.settings.Settings, gateway.settings.Settings)
    names = {name.upper() for model in models for name in model.model_fields}
    for name in environment:
        if name not in names and (similar := get_close_matches(name, names, n=1, cutoff=0.9)):
            yield name, similar[0]


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first SIGINT, SIGTERM or SIGHUP. Later ones are ignored."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, stop)
    yield


def show_errors(name: str, lines: list[str]) -> None:
    """Print lines that a program wrote to standard error. Errors of printing are ignored."""
    with contextlib.suppress(OSError):
        print("\n".join(f"{name} {line}" for line in lines), flush=True)


def welcome(stack: Stack) -> str:
    """Return the addresses of everything, and two commands to try."""
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
