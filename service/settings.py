"""Settings from environment variables, validated at startup."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal, Self

import psycopg
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from runtime.settings import Count, Port, ProgramSettings, Seconds
from service.amqp import is_amqp_url
from service.postgres.session import Timeouts
from service.reads.replicas import by_host

# Seconds, up to a hundred days.
LongSeconds = Annotated[float, Field(ge=0.001, le=8_640_000)]


def _networks(value: object) -> object:
    """Parse a comma-separated list of CIDRs. An empty value is an empty list."""
    if isinstance(value, str):
        return [ip_network(part.strip()) for part in value.split(",") if part.strip()]
    return value or ()


Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)]


class Settings(ProgramSettings):
    """Settings of the service and its workers. Times are in seconds, sizes in bytes."""

    # The database.
    database_url: str = Field(min_length=1)
    write_connections: Count = 4
    read_connections: Count = 4
    connection_timeout: Seconds = 1.0
    lock_timeout: Seconds = 2.0
    statement_timeout: Seconds = 5.0
    database_read_url: str | None = None
    replica_timeout: Seconds = 1.0

    # The process.
    grpc_host: str = "0.0.0.0"  # noqa: S104  # a container must be reachable from outside
    grpc_port: Port = 50051
    # How long a connection accepts new calls. The streams of watchers continue for an hour.
    grpc_connection_age: Seconds = 30.0
    metrics_port: Port | None = 9464
    channelz_port: Port | None = None

    # Calls.
    request_timeout: Seconds = 30.0
    shutdown_grace: Seconds = 15.0
    # Open gRPC calls, including those whose request has not arrived yet. More than the
    # capacity of all queues.
    max_calls: Count = 10_000
    max_batch_writes: Annotated[int, Field(ge=1, le=1000)] = 256
    # 1 turns shared calls off, as needed by a database that is sharded by organization.
    max_call_organizations: Count = 256
    # Room for at least one batch of 1,000.
    max_queued_writes: Annotated[int, Field(ge=1000)] = 4096
    max_queued_reads: Count = 512

    # Watching.
    watch_poll_interval: Seconds = 0.2
    max_watchers: Count = 1000

    # Workers.
    worker_metrics_port: Port | None = 9466
    # One connection may wait for a lock, one is for other tasks, one for further operations.
    worker_connections: Annotated[int, Field(ge=3)] = 4

    # Accepted operations.
    operation_queue: Literal["postgres", "rabbitmq"] = "postgres"
    operation_poll_interval: Seconds = 0.05
    # How long a worker keeps its organizations without renewing the lease. At least twice
    # STATEMENT_TIMEOUT.
    operation_lease: Seconds = 15.0
    operation_retention_days: Annotated[float, Field(gt=0, le=3650)] = 7.0

    # RabbitMQ. Without AMQP_URL no events are published.
    amqp_url: str | None = None
    amqp_timeout: Seconds = 2.0
    event_poll_interval: Seconds = 0.2
    event_lease: Annotated[float, Field(ge=1, le=3600)] = 10.0

    # Webhooks. The networks (CIDRs) that webhooks may reach, also by http, in addition to
    # public addresses by https. The service and its workers need the same value.
    webhook_allowed_networks: Networks = ()
    webhook_max_per_organization: Annotated[int, Field(ge=1, le=1000)] = 20
    webhook_secret_overlap: LongSeconds = 24 * 3600
    # Webhooks that a worker sends to at the same time.
    webhook_concurrency: Annotated[int, Field(ge=2, le=1024)] = 128
    webhook_timeout: Seconds = 10.0
    webhook_poll_interval: Seconds = 0.2
    webhook_lease: Seconds = 30.0
    webhook_first_retry: Seconds = 1.0
    webhook_longest_retry: LongSeconds = 3600
    webhook_give_up_after: LongSeconds = 3 * 24 * 3600
    webhook_log_retention: LongSeconds = 14 * 24 * 3600

    @model_validator(mode="after")
    def _lock_ends_before_statement(self) -> Self:
        if self.lock_timeout > self.statement_timeout:
            raise ValueError("LOCK_TIMEOUT must not be longer than STATEMENT_TIMEOUT")
        return self

    @field_validator("database_read_url")
    @classmethod
    def _read_url_names_hosts(cls, url: str | None) -> str | None:
        try:
            by_host(url or "")
        except (ValueError, psycopg.Error):
            # The original message may contain the password.
            raise ValueError(
                "must be a connection string of libpq, with one port, or one for each host"
            ) from None
        return url

    @model_validator(mode="after")
    def _rabbitmq_is_known(self) -> Self:
        if self.operation_queue == "rabbitmq":
            if self.amqp_url is None:
                raise ValueError("OPERATION_QUEUE=rabbitmq needs AMQP_URL")
            # A message may be redelivered after hours. Its result shows that it was applied.
            if self.operation_retention_days < 1:
                raise ValueError("OPERATION_RETENTION_DAYS must be at least 1 with rabbitmq")
        return self

    @field_validator("amqp_url")
    @classmethod
    def _amqp_url_is_one(cls, url: str | None) -> str | None:
        # The parser's message may contain the password.
        if url is not None and not is_amqp_url(url):
            raise ValueError("must be like amqp://user:password@host:5672/vhost, or amqps://...")
        return url

    @model_validator(mode="after")
    def _lease_outlasts_a_request(self) -> Self:
        if self.webhook_lease < 2 * self.webhook_timeout:
            raise ValueError("WEBHOOK_LEASE must be at least twice WEBHOOK_TIMEOUT")
        return self

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts of the primary."""
        return Timeouts(
            connection=self.connection_timeout,
            lock=self.lock_timeout,
            statement=self.statement_timeout,
        )
