"""Prometheus metrics of the service and its workers."""

from prometheus_client import Counter, Gauge, Histogram

from runtime.metrics import new_registry

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one process, in their own registry."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self.request_seconds = Histogram(
            "appointments_request_seconds",
            "Time from the arrival of a request to its response, by RPC and gRPC status code",
            ["method", "code"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.certificate_expiry = Gauge(
            "appointments_certificate_expiry_timestamp_seconds",
            "End of a certificate in use, by the setting that names its file",
            ["setting"],
            registry=self.registry,
        )
        self.api_keys_age_seconds = Gauge(
            "appointments_api_keys_age_seconds",
            "Time since API keys were read from the database, 0 without access control. Above 3,"
            " all are refused as ACCESS_UNAVAILABLE",
            registry=self.registry,
        )
        self.signing_keys_age_seconds = Gauge(
            "appointments_signing_keys_age_seconds",
            "Time since the signing keys of tokens were read, 0 without them. Above"
            " JWT_KEYS_MAX_AGE, all tokens are refused as ACCESS_UNAVAILABLE",
            registry=self.registry,
        )
        self.relayed_calls = Histogram(
            "appointments_relayed_calls",
            "Calls in one message of a gateway",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "appointments_batch_writes",
            "Writes in one database call",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self.lock_wait_seconds = Histogram(
            "appointments_lock_wait_seconds",
            "Time that a batch waited for the advisory lock of its organization",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.accepted_together = Histogram(
            "appointments_accepted_operations",
            "Operations appended to the queue in one call",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        self.applied_together = Histogram(
            "appointments_applied_operations",
            "Operations applied in one database call",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        self.operation_delay_seconds = Histogram(
            "appointments_operation_delay_seconds",
            "Time from the acceptance of the oldest operation in a batch to its result",
            buckets=(*_SECONDS, 60, 300, 3600),
            registry=self.registry,
        )
        self.queued_operations = Gauge(
            "appointments_queued_operations",
            "Operations in PostgreSQL that wait to be applied, counted up to 100,000. Every"
            " worker reports all of them",
            registry=self.registry,
        )
        self.history_bytes = Gauge(
            "appointments_history_bytes",
            "Size of the history with its indexes. Every worker reports it, once a minute",
            registry=self.registry,
        )
        self.listening = Gauge(
            "appointments_worker_listening",
            "1 while a worker is notified of work, 0 while it polls at its poll intervals",
            registry=self.registry,
        )
        self.hold_expiry_delay_seconds = Histogram(
            "appointments_hold_expiry_delay_seconds",
            "Time from the end of an expired hold until the worker recorded it, as a change. Its"
            " count is the number of expired holds recorded",
            buckets=(*_SECONDS, 60, 300, 3600),
            registry=self.registry,
        )
        self.events_published = Counter(
            "appointments_events_published",
            "Changes confirmed by RabbitMQ",
            registry=self.registry,
        )
        self.events_behind = Gauge(
            "appointments_events_behind",
            "Changes not published yet, as of the last scan of the worker that publishes",
            registry=self.registry,
        )
        self.replica_reads = Counter(
            "appointments_replica_reads",
            "Reads sent to a replica, by result: answered, or repeated elsewhere because the"
            " replica was behind, busy, or failed",
            ["replica", "result"],
            registry=self.registry,
        )
        self.watched_entries = Counter(
            "appointments_watched_entries",
            "History entries sent to watchers",
            registry=self.registry,
        )
        self.webhook_seconds = Histogram(
            "appointments_webhook_delivery_seconds",
            "Duration of webhook requests, by result: taken (2xx), status (not 2xx), timeout,"
            " connection, refused (the address is not allowed)",
            ["result"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.unexpected_errors = Counter(
            "appointments_unexpected_errors",
            "Unexpected errors in background loops, which back off and retry",
            ["loop"],
            registry=self.registry,
        )
        self.queued_writes = Gauge(
            "appointments_queued_writes",
            "Writes that wait to be sent to the database",
            registry=self.registry,
        )
        self.watchers = Gauge(
            "appointments_watchers",
            "Calls of WatchAppointments in progress",
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
