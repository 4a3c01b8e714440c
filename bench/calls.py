"""What the callers of a connection send, and what they were answered."""

from collections.abc import Callable
from time import perf_counter

from bench.measured import GOOD

# Codes of what ended without a status of gRPC or HTTP.
CONNECTION_LOST = "CONNECTION_LOST"
UNANSWERED = "UNANSWERED"


class Calls:
    """Requests for as long as the time lasts, and how many seconds each answer took, by code.

    `make` gets 0, 1, 2 and so on. A caller whose answer is not good waits `pause` seconds
    before its next request, and one with an `interval` lets so many seconds pass from one
    request to the next.
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
        # The time over which the callers' first requests are spread.
        self.spread = interval or pause
        self._pause = pause
        self._interval = interval
        self._make = make
        self._sent = 0
        self._began = self._last = perf_counter()
        self._until = self._began + seconds

    @property
    def seconds(self) -> float:
        """From the beginning to the last answer."""
        return self._last - self._began

    def next(self, now: float) -> bytes | None:
        """Return the next request, or None when the time is over."""
        if now >= self._until:
            return None
        number = self._sent
        self._sent = number + 1
        return self._make(number)

    def answered(self, code: str, started: float, now: float) -> float:
        """Count an answer; return how long its caller waits."""
        self._last = now
        found = self.answers.get(code)
        if found is None:
            found = self.answers[code] = []
        found.append(now - started)
        rest = max(started + self._interval - now, 0.0)
        return rest if code in GOOD else max(rest, self._pause)
