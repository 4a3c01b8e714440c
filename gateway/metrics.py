"""Prometheus metrics of the gateway."""

from collections.abc import Callable, Mapping
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from runtime.metrics import new_registry


class Metrics:
    """The metrics of one gateway.

    The label `method` is the name of an RPC, the path of a page, or `preflight`.
    """

    def __init__(self, in_flight: Callable[[], int], streams: Callable[[], int]) -> None:
        self.registry = new_registry()
        self._seconds = Histogram(
            "gateway_request_seconds",
            "Time from the head of a request to its response. Status 499: the client left.",
            ["method", "status"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "gateway_calls_in_flight",
            "Calls to the service in flight.",
            registry=self.registry,
        )
        self.in_flight.set_function(in_flight)
        self.streams = Gauge(
            "gateway_event_streams",
            "Open event streams.",
            registry=self.registry,
        )
        self.streams.set_function(streams)
        self.streams_ended = Counter(
            "gateway_event_streams_ended",
            "Event streams that have ended, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.certificate_expiry = Gauge(
            "gateway_certificate_expiry_timestamp_seconds",
            "End of a certificate in use, by the setting that names its file.",
            ["setting"],
            registry=self.registry,
        )
        self.unexpected_errors = Counter(
            "gateway_unexpected_errors",
            "Unexpected errors in background loops, which back off and retry.",
            ["loop"],
            registry=self.registry,
        )
        self._seconds_of = cache(lambda method, status: self._seconds.labels(method, str(status)))

    def observe(
        self,
        method: str,
        status: int,
        seconds: float,
        exemplar: Mapping[str, str] | None = None,
    ) -> None:
        """Count a request whose response was sent. `exemplar` has the ids of its trace."""
        self._seconds_of(method, status).observe(seconds, dict(exemplar) if exemplar else None)
