"""Logs on standard output, as one JSON object per line or as text."""

import asyncio
import atexit
import logging
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor

from runtime.text_logs import TextRenderer

# Seconds after which the lines of requests are written, if they are too few for a write until
# then. While there are more they wait for up to twice as long.
WAIT = 0.01


def configure_logs(program: str, *, level: str, format: str) -> None:
    """Write log lines to standard output, and those of libraries from level warning on.

    `level` is debug, info, warning or error; `format` is json or text. Text starts with the
    name of the program, and has colors on a terminal unless NO_COLOR is set. Tracebacks do not
    include local variables, since they contain the data of callers.
    """
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
    ]
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    renderer: Processor = (
        json_line if format == "json" else TextRenderer(program, coloured=coloured)
    )
    output = _Output()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    # One lock, as an object whose end is logged may end while any other line is written.
    handler.lock = output.lock
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Python warnings, such as a coroutine that was never awaited.
    logging.captureWarnings(capture=True)
    # These log every lost connection several times; the service logs it once.
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def log_event_loop() -> None:
    """Log errors reported to the running event loop, such as that of a task nobody awaits."""
    asyncio.get_running_loop().set_exception_handler(_log_unhandled)


def _log_unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    fields = {
        name: repr(value)
        for name, value in context.items()
        if name not in {"message", "exception", "source_traceback"}
    }
    structlog.get_logger().error(
        "unhandled in the event loop",
        problem=context["message"],
        exc_info=context.get("exception"),
        **fields,
    )


def lifecycle_logger() -> structlog.BoundLogger:
    """Return a logger without a minimum level, for the start and end of a program."""
    output = structlog.get_config()["logger_factory"]()
    logger: structlog.BoundLogger = structlog.wrap_logger(
        output, wrapper_class=structlog.BoundLogger
    )
    return logger


def request_logger() -> Callable[[dict[str, object]], None] | None:
    """Return what logs the event `request` at level info, with the fields of a dictionary.

    It changes the dictionary. Returns None if that level is not logged. Nearly all lines are of
    requests, so they do without structlog's chain, and wait for others to be written with.
    """
    log = structlog.get_logger().bind()
    if not log.is_enabled_for(logging.INFO):
        return None
    config = structlog.get_config()
    output, render = config["logger_factory"](), config["processors"][-1]
    if not isinstance(output, _Output):  # not configured, as in a test
        return lambda fields: log.info("request", **fields)

    def text(fields: dict[str, object]) -> bytes:
        return f"{render(None, 'info', fields)}\n".encode()

    line = _json if render is json_line else text

    def log_request(fields: dict[str, object]) -> None:
        fields["event"] = "request"
        fields["level"] = "info"
        output.add(line(fields))

    return log_request


def json_line(_: object, __: str, event: EventDict) -> str:
    """Make a line of an event, with its time; the last processor of structlog's chain."""
    return _json(event)[:-1].decode()


def _json(event: EventDict) -> bytes:
    """Make a line that ends with a line break. What structlog has takes three times as long."""
    event["timestamp"] = datetime.now(UTC)
    return orjson.dumps(event, repr, orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


class _Output:
    """Writes lines in their order, those of requests together.

    The system call is the most expensive part of logging, above all after a pause of the program.
    So under load lines are written as soon as they fill a write, and a timer is for the others. A
    single write has at most PIPE_BUF bytes, which pipes write atomically, so that lines of several
    programs do not mix.
    """

    def __init__(self) -> None:
        self._descriptor = sys.stdout.fileno()
        # Any thread adds to it, in one step. Only the one that has the lock removes from it.
        self._waiting = bytearray()
        self.lock = threading.RLock()
        self._writing = False
        self._scheduled = False
        self._written = False  # since the timer began
        atexit.register(self.flush)

    def add(self, line: bytes) -> None:
        """Write a line with later ones, within two times WAIT; at once without an event loop."""
        self._append(line)
        if not self._scheduled:
            self._schedule()

    def msg(self, line: str) -> None:
        """Write a line, after those that wait."""
        self.write(f"{line}\n")

    # The names of structlog's levels, by which it calls.
    debug = info = warning = error = critical = exception = msg

    def write(self, lines: str) -> None:
        """Write whole lines, after those that wait."""
        self._append(lines.encode())
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        with self.lock:
            if self._writing:  # an object logs at its end, which can come in the middle of this
                return
            self._writing = True
            try:
                while self._waiting:
                    self._write()
            finally:
                self._writing = False

    def _append(self, data: bytes) -> None:
        if len(self._waiting) + len(data) > select.PIPE_BUF:
            self.flush()
        self._waiting += data

    def _schedule(self) -> None:
        try:
            asyncio.get_running_loop().call_later(WAIT, self._end_wait)
            self._scheduled, self._written = True, False
        except RuntimeError:
            self.flush()

    def _end_wait(self) -> None:
        self._scheduled = False
        if not self._written:
            self.flush()
        elif self._waiting:
            self._schedule()

    def _write(self) -> None:
        self._written = True
        data = bytes(self._waiting)
        del self._waiting[: len(data)]
        # A full disk or closed pipe must not fail requests, and the error cannot be logged.
        # Unlike a buffered file, this leaves nothing behind that would fail at exit.
        with suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]
