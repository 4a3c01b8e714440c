"""The measurements of one run."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from statistics import median
from typing import Self

GOOD = frozenset({"OK", "200", "201", "202"})
CONFLICTS = frozenset({"ALREADY_EXISTS", "409"})
REFUSALS = frozenset({"RESOURCE_EXHAUSTED", "429"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles of latencies, in milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Return nearest-rank percentiles; zeros if there are no latencies."""
        ordered = sorted(seconds) or [0.0]

        def rank(percent: int) -> float:
            return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1000

        return cls(p50=rank(50), p95=rank(95), p99=rank(99))

    @classmethod
    def median(cls, several: Sequence[Self]) -> Self:
        """Return the median of each percentile."""
        return cls(
            p50=median(each.p50 for each in several),
            p95=median(each.p95 for each in several),
            p99=median(each.p99 for each in several),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The number of responses by code, the duration, and the load generator's CPU time.

    `refusals` is the latency of refusals, if measured separately; `latency` then excludes
    them. `response` is one of the responses: a gRPC message or an HTTP body, if it was kept.
    """

    answers: dict[str, int]
    seconds: float
    cpu_seconds: float
    latency: Latency
    refusals: Latency | None = None
    response: bytes = b""

    def per_second(self, codes: Set[str]) -> float:
        """Return the rate of responses with these codes."""
        return sum(self.answers.get(code, 0) for code in codes) / self.seconds
