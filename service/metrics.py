"""What Prometheus is told."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.request_seconds = Histogram(
            "appointments_request_seconds",
            "Time from a request's arrival to its answer, by RPC and gRPC status code",
            ["method", "code"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.relayed_calls = Histogram(
            "appointments_relayed_calls",
            "Calls that came in one message of a gateway",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "appointments_batch_writes",
            "Writes that went to the database in one call",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self.lock_wait_seconds = Histogram(
            "appointments_lock_wait_seconds",
            "Time that a batch waited for its organization's advisory lock",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.accepted_together = Histogram(
            "appointments_accepted_operations",
            "Operations that were appended to the queue together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        self.applied_together = Histogram(
            "appointments_applied_operations",
            "Operations that a worker applied in one call",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        self.operation_delay_seconds = Histogram(
            "appointments_operation_delay_seconds",
            "Time from the acceptance of the oldest operation of a batch to its end",
            buckets=(*_SECONDS, 60, 300, 3600),
            registry=self.registry,
        )
        self.queued_operations = Gauge(
            "appointments_queued_operations",
            "Operations in PostgreSQL that wait to be applied, counted up to 100,000; every"
            " worker counts all of them",
            registry=self.registry,
        )
        self.events_published = Counter(
            "appointments_events_published",
            "Changes that RabbitMQ has confirmed",
            registry=self.registry,
        )
        self.events_behind = Gauge(
            "appointments_events_behind",
            "Changes that are not published yet, as last seen by the worker that publishes",
            registry=self.registry,
        )
        self.replica_reads = Counter(
            "appointments_replica_reads",
            "Reads that a replica was asked for: answered, or passed on because it was behind,"
            " busy, or failed",
            ["replica", "result"],
            registry=self.registry,
        )
        self.watched_entries = Counter(
            "appointments_watched_entries",
            "History entries that were sent to watchers",
            registry=self.registry,
        )
        self.webhook_seconds = Histogram(
            "appointments_webhook_delivery_seconds",
            "Time that sending a change to a webhook took, by result: taken, status (another"
            " than 2xx), timeout, connection, refused (its address is not allowed)",
            ["result"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.unexpected_errors = Counter(
            "appointments_unexpected_errors",
            "Errors that a loop in the background has no answer to but to try again later",
            ["loop"],
            registry=self.registry,
        )
        self.queued_writes = Gauge(
            "appointments_queued_writes",
            "Writes that wait for the batch before them",
            registry=self.registry,
        )
        self.watchers = Gauge(
            "appointments_watchers",
            "Calls of WatchAppointments under way",
            registry=self.registry,
        )
        self.pool_connections = Gauge(
            "appointments_pool_connections",
            "Connections of a pool, by state: busy or idle",
            ["pool", "state"],
            registry=self.registry,
        )
        self.pool_waiting = Gauge(
            "appointments_pool_waiting",
            "Requests that wait for a connection of a pool",
            ["pool"],
            registry=self.registry,
        )
