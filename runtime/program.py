"""Runs a program until a signal, with its lifecycle logged."""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import TypeVar

import orjson

from runtime.logs import lifecycle_logger, log_event_loop

# Environment variable with the file descriptor of a pipe. A parent process can pass one, and
# reads from it where the program listens as soon as it does.
LISTENING_FD = "LISTENING_FD"

Running = TypeVar("Running")


async def run_until_stopped(
    program: AbstractAsyncContextManager[Running],
    describe: Callable[[Running], Mapping[str, object]],
    describe_stop: Callable[[Running], Mapping[str, object]] = lambda _: {},
) -> None:
    """Run a program until SIGTERM or SIGINT, and log its start and end.

    Entering `program` starts it, and raises an error if it cannot start; leaving stops it.
    `describe` returns the fields of the log event `listening`, such as the ports, and
    `describe_stop` those of `stopping`.
    """
    log = lifecycle_logger()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log_event_loop()
    async with program as running:
        _tune_garbage_collector()
        fields = describe(running)
        log.info("listening", **fields)
        _report(fields)
        await stop.wait()
        log.info("stopping", **describe_stop(running))
    log.info("stopped")


def _report(fields: Mapping[str, object]) -> None:
    """Write the fields as JSON to the pipe LISTENING_FD, if there is one, and close it."""
    descriptor = os.environ.pop(LISTENING_FD, None)
    if descriptor is not None:
        with suppress(OSError), open(int(descriptor), "wb") as pipe:  # noqa: PTH123
            pipe.write(orjson.dumps(fields))


def _tune_garbage_collector() -> None:
    """Exclude all existing objects from collection, and collect less often.

    Requests rarely leave reference cycles behind.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
