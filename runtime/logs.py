"""Logs on standard output: one JSON object a line, or text for people."""

import asyncio
import atexit
import logging
import select
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor


def configure_logs(level: str, format: str) -> None:
    """Send our own log lines, and warnings and worse of libraries, to standard output.

    `level` is debug, info, warning or error, `format` json or text. Tracebacks are
    logged without the values of local variables, which hold what callers sent.
    """
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if format == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer: Processor = structlog.processors.JSONRenderer(serializer=_json)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Output())),
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
    # A coroutine that was never awaited, say.
    logging.captureWarnings(capture=True)
    # Every lost connection is told several times there, and by ourselves.
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def log_event_loop() -> None:
    """Log what the running event loop alone learns of, such as a failure nobody awaited."""
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
    """Make a logger that no level silences: for the start and the end of a program."""
    logger: structlog.BoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(sys.stdout), wrapper_class=structlog.BoundLogger
    )
    return logger


class _Output:
    """Standard output, to which the lines of one turn of the event loop go together.

    Writing costs more than all else about a line. What is written at once is what a pipe
    takes whole, so that the lines of several programs do not mix.
    """

    def __init__(self) -> None:
        self._file = sys.stdout.buffer
        self._lines: list[bytes] = []
        self._size = 0
        self._scheduled = False
        atexit.register(self._write)

    def write(self, line: str) -> None:
        data = line.encode()
        if self._size + len(data) > select.PIPE_BUF:
            self._write()
        self._lines.append(data)
        self._size += len(data)

    def flush(self) -> None:
        """Write what there is at the end of this turn of the event loop, if one runs."""
        if self._scheduled:
            return
        try:
            asyncio.get_running_loop().call_soon(self._write)
            self._scheduled = True
        except RuntimeError:
            self._write()

    def _write(self) -> None:
        lines, self._lines, self._size, self._scheduled = self._lines, [], 0, False
        # Where there is no room for lines there is none for a complaint either, and calls
        # are not to fail for it.
        with suppress(OSError):
            self._file.write(b"".join(lines))
            self._file.flush()


def _json(event: EventDict, **_: object) -> str:
    return orjson.dumps(event, default=repr).decode()
