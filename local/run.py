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
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Never

import orjson
from pydantic import ValidationError
from rich.console import Console

import gateway.settings
import service.settings
from local.postgres import EmbeddedPostgres
from local.programs import ROOT, Program, StartError
from local.stack import Stack, running
from runtime.settings import faults

# As terminals have them (ECMA-48, SGR).
BOLD, DIM, RED, YELLOW, BLUE, MAGENTA, CYAN = "1", "2", "31", "33", "34", "35", "36"
STYLES = {"service": CYAN, "worker": BLUE, "gateway": MAGENTA}
LEVELS = {"debug": DIM, "warning": YELLOW, "error": RED, "critical": f"{BOLD};{RED}"}
NOT_WORTH_SHOWING = {"event", "level", "timestamp", "logger", "service"}


# There is no authentication, so what is tried out is not shown to the network.
ON_LOOPBACK = {"GRPC_HOST": "127.0.0.1", "GATEWAY_HOST": "127.0.0.1"}


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    lines = Lines(console, raw=os.environ.get("LOG_FORMAT") == "json")
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
                settings={**ON_LOOPBACK, **os.environ, "LOG_FORMAT": "json"},
                on_step=lambda step: console.print(f"{step} ...", style="dim"),
                on_lines=lines.show,
                on_exit=ended.put,
            ) as stack,
        ):
            console.print(welcome(stack), markup=False)
            _fail_when_one_ends(ended)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            console.print("stopped", style="dim")
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


class Lines:
    """Prints the log lines of the programs for people, those that came together at once.

    By hand, for it takes the processors' time from the programs: as much for ten lines as
    rich takes for one.
    """

    def __init__(self, console: Console, *, raw: bool) -> None:
        self._coloured = console.is_terminal and not console.no_color
        self._raw = raw
        self._printing = threading.Lock()

    def show(self, name: str, lines: list[str]) -> None:
        """Print lines of a program; where they cannot be printed any more they are lost."""
        text = "\n".join(lines if self._raw else [self.line(name, line) for line in lines])
        with self._printing, contextlib.suppress(OSError):
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def line(self, name: str, line: str) -> str:
        """A JSON log line for people; anything else as it is."""
        program = self._styled(name, STYLES.get(name, ""))
        try:
            event: dict[str, Any] = orjson.loads(line)
            what = str(event["event"])
        except (ValueError, TypeError, KeyError):
            return f"{program} {line}"
        time = ""
        with contextlib.suppress(KeyError, ValueError):
            local = datetime.fromisoformat(str(event["timestamp"])).astimezone()
            time = self._styled(f"{local:%H:%M:%S} ", DIM)
        fields = [
            f" {self._styled(f'{key}=', DIM)}{value}"
            for key, value in event.items()
            if key not in NOT_WORTH_SHOWING
        ]
        level = LEVELS.get(str(event.get("level")), BOLD)
        return f"{program} {time}{self._styled(what, level)}{''.join(fields)}"

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._coloured else text


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
