"""Background loops that survive unexpected errors: logged, counted, retried with backoff."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic

import structlog
from prometheus_client import Counter

# Seconds. The delay doubles with each failure in a row.
FIRST_DELAY = 1.0
LONGEST_DELAY = 15.0

log = structlog.get_logger()


def log_unexpected(loop: str, error: BaseException, errors: Counter, **fields: object) -> None:
    """Log an unexpected error with its traceback, and count it under the loop's name."""
    errors.labels(loop).inc()
    log.error("unexpected error", loop=loop, exc_info=error, **fields)


class Backoff:
    """The retry delay of one loop. Unexpected errors are logged under the loop's name."""

    def __init__(self, loop: str, errors: Counter) -> None:
        self._loop = loop
        self._errors = errors
        self._delay = FIRST_DELAY

    def failed(self, error: BaseException) -> float:
        """Log an unexpected error and return the delay before the next attempt (seconds).

        The delay doubles with each failure in a row, up to LONGEST_DELAY. Jitter keeps loops
        that failed together from retrying together.
        """
        delay = self._delay * random.uniform(0.5, 1)  # noqa: S311  no secret
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        log_unexpected(self._loop, error, self._errors, delay=round(delay, 3))
        return delay

    def succeeded(self) -> None:
        """Reset the delay."""
        self._delay = FIRST_DELAY


async def run_forever(loop: str, work: Callable[[], Awaitable[object]], errors: Counter) -> None:
    """Run work that never ends, and restart it with backoff when it fails, until cancelled.

    A run that lasted longer than LONGEST_DELAY resets the delay.
    """
    backoff = Backoff(loop, errors)
    task = asyncio.current_task()
    # Work that fails while it is being cancelled must not be restarted.
    while task is not None and not task.cancelling():
        began = monotonic()
        try:
            await work()
        except Exception as error:  # noqa: BLE001  the loop continues after any error
            failure = error
        else:
            failure = RuntimeError(f"{loop} ended by itself")
        if monotonic() - began > LONGEST_DELAY:
            backoff.succeeded()
        delay = backoff.failed(failure)
        await asyncio.sleep(0 if task.cancelling() else delay)
