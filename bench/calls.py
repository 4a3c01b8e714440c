"""The requests of a load, and the latencies of their responses."""

from collections.abc import Callable
from time import perf_counter

from bench.measured import GOOD

# Codes of calls that ended without a gRPC or HTTP status.
CONNECTION_LOST = "CONNECTION_LOST"
UNANSWERED = "UNANSWERED"


class Calls:
    """Makes requests for `seconds`, and records the latencies (seconds) by response code.

    `make` is called with 0, 1, 2 and so on. After an error, a caller waits `pause` (seconds)
    before its next request. `interval` is the minimum time (seconds) between the requests of
    a caller.
    """

    def __init__(
        self,
        make: Callable[[int], bytes],
        *,
        seconds: float,
        pause: float,
        interval: float = 0.0,
    ) -> None:
        self.answers: dict[str, list[float]] = {}
        # Seconds over which the first requests of the callers are spread.
        self.spread = interval or pause
        self._pause = pause
        self._interval = interval
        self._make = make
        self._sent = 0
        self._began = self._last = perf_counter()
        self._until = self._began + seconds

    @property
    def seconds(self) -> float:
        """The time from the start to the last response."""
        return self._last - self._began

    @property
    def latest(self) -> int:
        """The number of the latest request."""
        return self._sent - 1

    def next(self, now: float) -> bytes | None:
        """Return the next request, or None after the time."""
        if now >= self._until:
            return None
        number = self._sent
        self._sent = number + 1
        return self._make(number)

    def answered(self, code: str, started: float, now: float) -> float:
        """Record a response; return how long its caller must wait (seconds)."""
        self._last = now
        found = self.answers.get(code)
        if found is None:
            found = self.answers[code] = []
        found.append(now - started)
        rest = max(started + self._interval - now, 0.0)
        return rest if code in GOOD else max(rest, self._pause)
