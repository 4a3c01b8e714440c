"""What is under way at the same time, and how much of it may be."""

from http import HTTPStatus

from gateway.problems import Problem, ProblemError


class InFlight:
    """Counts what is under way. One beyond the limit raises `ProblemError`: 429."""

    def __init__(
        self, limit: int, refusal: str = "Too many requests are in flight already."
    ) -> None:
        self._limit = limit
        self._refusal = refusal
        self.count = 0

    def __enter__(self) -> None:
        if self.count >= self._limit:
            raise ProblemError(
                Problem(
                    status=HTTPStatus.TOO_MANY_REQUESTS,
                    code="OVERLOADED",
                    detail=self._refusal,
                    retry_after=1,
                )
            )
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
