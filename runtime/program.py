"""What every program does as a process: run until a signal, and settle its garbage collector."""

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
    """Run a program until SIGTERM or SIGINT, and log its start and its end.

    `program` serves as long as its block runs, and raises what keeps it from starting.
    `describe` gives the fields of the event `listening`, from which others learn its ports.
    """
    log = lifecycle_logger()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log_event_loop()
    async with program as running:
        _settle_garbage_collector()
        log.info("listening", **describe(running))
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


def _settle_garbage_collector() -> None:
    """Exempt what exists by now, and collect less often.

    What a request leaves behind is rarely a cycle.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
