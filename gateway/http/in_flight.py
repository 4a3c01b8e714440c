"""Limits the number of requests in flight."""

from gateway.http.problems import refusal
from public_json.reasons import Reason


class InFlight:
    """Counts the blocks being executed. Beyond the limit, raises `ProblemError`: 429."""

    def __init__(self, limit: int, detail: str = "Too many requests are in flight.") -> None:
        self._limit = limit
        self._detail = detail
        self.count = 0

    def __enter__(self) -> None:
        if self.count >= self._limit:
            raise refusal(Reason.OVERLOADED, self._detail)
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
