"""Loops that outlive what goes wrong in them: it is logged, counted, and waited after."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic

import structlog
from prometheus_client import Counter

# Seconds after the first failure in a row, and at most; they double in between.
FIRST_DELAY = 1.0
LONGEST_DELAY = 15.0

log = structlog.get_logger()


def tell(loop: str, error: BaseException, errors: Counter, **fields: object) -> None:
    """Log an unexpected error of a loop with its traceback, and count it by the loop's name."""
    errors.labels(loop).inc()
    log.error("unexpected error", loop=loop, exc_info=error, **fields)


class Attempts:
    """The attempts of one loop, by whose name its unexpected errors are logged and counted."""

    def __init__(self, loop: str, errors: Counter) -> None:
        self._loop = loop
        self._errors = errors
        self._delay = FIRST_DELAY

    def failed(self, error: BaseException) -> float:
        """Tell of an unexpected error; return how long to wait now (seconds).

        It is longer after each failure in a row, up to a bound, and varies, so that what
        failed together does not come back together.
        """
        delay = self._delay * random.uniform(0.5, 1)  # noqa: S311  no secret
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        tell(self._loop, error, self._errors, delay=round(delay, 3))
        return delay

    def succeeded(self) -> None:
        """Begin with the shortest wait again."""
        self._delay = FIRST_DELAY


async def keep(loop: str, work: Callable[[], Awaitable[object]], errors: Counter) -> None:
    """Do work that never ends, again whenever it fails, until cancelled.

    What ran for longer than the longest wait counts as a success.
    """
    attempts = Attempts(loop, errors)
    task = asyncio.current_task()
    # What fails while it is cancelled has ended all the same.
    while task is not None and not task.cancelling():
        began = monotonic()
        try:
            await work()
        except Exception as error:  # noqa: BLE001  it is to go on, whatever failed
            failure = error
        else:
            failure = RuntimeError(f"{loop} ended by itself")
        if monotonic() - began > LONGEST_DELAY:
            attempts.succeeded()
        delay = attempts.failed(failure)
        await asyncio.sleep(0 if task.cancelling() else delay)
