"""`make run`: the whole service on this machine, until Ctrl-C.

The data stays in `.data/postgres` (RUN_DATA_DIR) and is there again the next time; with
DATABASE_URL that server is used instead. The settings of both programs are taken from
the environment (GRPC_PORT, GATEWAY_PORT, LOG_LEVEL, ...).
"""

import contextlib
import json
import os
import queue
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Never

from rich.console import Console
from rich.text import Text

from scripts.postgres import EmbeddedPostgres
from scripts.programs import ROOT, Program, StartError
from scripts.stack import Stack, running

STYLES = {"service": "cyan", "worker": "blue", "gateway": "magenta"}
LEVELS = {"debug": "dim", "warning": "yellow", "error": "red", "critical": "bold red"}
NOT_WORTH_SHOWING = {"event", "level", "timestamp", "logger", "service"}


# There is no authentication, so what is tried out is not shown to the network.
ON_LOOPBACK = {"GRPC_HOST": "127.0.0.1", "GATEWAY_HOST": "127.0.0.1"}


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    raw = os.environ.get("LOG_FORMAT") == "json"
    ended: queue.SimpleQueue[Program] = queue.SimpleQueue()

    def show(name: str, line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone before the programs are
            console.print(Text(line) if raw else log_line(name, line))

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
                on_line=show,
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


def log_line(name: str, line: str) -> Text:
    """A JSON log line for people; anything else as it is."""
    text = Text(f"{name} ", style=STYLES.get(name, ""))
    try:
        event: dict[str, Any] = json.loads(line)
        what = str(event["event"])
    except (ValueError, TypeError, KeyError):
        return text.append(line, style="default")
    with contextlib.suppress(KeyError, ValueError):
        time = datetime.fromisoformat(str(event["timestamp"])).astimezone()
        text.append(f"{time:%H:%M:%S} ", style="dim")
    text.append(what, style=LEVELS.get(str(event.get("level")), "bold"))
    for key, value in event.items():
        if key not in NOT_WORTH_SHOWING:
            text.append(f" {key}=", style="dim")
            text.append(str(value), style="default")
    return text


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
