"""Metrics of the gateway, in the Prometheus format on a port of their own."""

from collections.abc import Callable
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)


class Metrics:
    """Counts what the gateway answers. `method` is an RPC's name or a page's path."""

    def __init__(self, in_flight: Callable[[], int], streams: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._seconds = Histogram(
            "gateway_request_seconds",
            "Time from a request's headers to its answer; status 499: the caller went away.",
            ["method", "status"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "gateway_calls_in_flight",
            "Calls to the service under way.",
            registry=self.registry,
        )
        self.in_flight.set_function(in_flight)
        self.streams = Gauge(
            "gateway_event_streams",
            "Event streams that are open.",
            registry=self.registry,
        )
        self.streams.set_function(streams)
        self.streams_ended = Counter(
            "gateway_event_streams_ended",
            "Event streams that have ended, by the reason.",
            ["reason"],
            registry=self.registry,
        )
        self.unexpected_errors = Counter(
            "gateway_unexpected_errors",
            "Errors that a loop in the background has no answer to but to try again.",
            ["loop"],
            registry=self.registry,
        )
        self._seconds_of = cache(lambda method, status: self._seconds.labels(method, str(status)))

    def observe(self, method: str, status: int, seconds: float) -> None:
        """Count one request that has been answered."""
        self._seconds_of(method, status).observe(seconds)
