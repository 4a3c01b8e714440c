"""Runs a program until a signal, with its lifecycle logged."""

import asyncio
import gc
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from runtime.logs import lifecycle_logger, log_event_loop

Running = TypeVar("Running")


async def run_until_stopped(
    program: AbstractAsyncContextManager[Running],
    describe: Callable[[Running], Mapping[str, object]],
) -> None:
    """Run a program until SIGTERM or SIGINT, and log its start and end.

    Entering `program` starts it, and raises an error if it cannot start; leaving stops it.
    `describe` returns the fields of the log event `listening`, such as the ports.
    """
    log = lifecycle_logger()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log_event_loop()
    async with program as running:
        _tune_garbage_collector()
        log.info("listening", **describe(running))
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


def _tune_garbage_collector() -> None:
    """Exclude all existing objects from collection, and collect less often.

    Requests rarely leave reference cycles behind.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
