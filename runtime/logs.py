"""Logs on standard output, as one JSON object per line or as text."""

import asyncio
import atexit
import logging
import os
import select
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor

from runtime.text_logs import TextRenderer


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
    handler = logging.StreamHandler(sys.stdout)
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


def json_line(_: object, __: str, event: EventDict) -> str:
    """Make a line of an event, with its time; the last processor of structlog's chain.

    What structlog has for this takes three times as long.
    """
    event["timestamp"] = datetime.now(UTC)
    return orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z).decode()


class _Output:
    """Buffers the lines of one iteration of the event loop and writes them together.

    The system call is the most expensive part of logging. A single write has at most PIPE_BUF
    bytes, which pipes write atomically, so that lines of several programs do not mix.
    """

    def __init__(self) -> None:
        self._descriptor = sys.stdout.fileno()
        self._lines: list[bytes] = []
        self._size = 0
        self._scheduled = False
        atexit.register(self._write)

    def msg(self, line: str) -> None:
        """Write at the end of this iteration of the event loop, or at once without a loop."""
        data = f"{line}\n".encode()
        if self._size + len(data) > select.PIPE_BUF:
            self._write()
        self._lines.append(data)
        self._size += len(data)
        if not self._scheduled:
            self._schedule()

    # The names of structlog's levels, by which it calls.
    debug = info = warning = error = critical = exception = msg

    def _schedule(self) -> None:
        try:
            asyncio.get_running_loop().call_soon(self._write)
            self._scheduled = True
        except RuntimeError:
            self._write()

    def _write(self) -> None:
        lines, self._lines, self._size, self._scheduled = self._lines, [], 0, False
        data = b"".join(lines)
        # A full disk or closed pipe must not fail requests, and the error cannot be logged.
        # Unlike a buffered file, this leaves nothing behind that would fail at exit.
        with suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]
