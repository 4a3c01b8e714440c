"""Settings from environment variables, validated at startup."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

import psycopg
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode
from yarl import URL

from runtime.secrets import FROM_FILE, OptionalSecret, Secret
from runtime.settings import (
    Count,
    Port,
    ProgramSettings,
    Seconds,
    certificate_files,
    require_pair,
)
from runtime.tls import CertificateFiles
from service.access.signing_keys import ALGORITHMS
from service.amqp import is_amqp_url
from service.postgres.session import Timeouts
from service.reads.replicas import by_host
from service.webhooks.encryption import read_key

# Seconds, up to a hundred days.
LongSeconds = Annotated[float, Field(ge=0.001, le=8_640_000)]


def _networks(value: object) -> object:
    """Parse a comma-separated list of CIDRs. An empty value is an empty list."""
    if isinstance(value, str):
        return [ip_network(part.strip()) for part in value.split(",") if part.strip()]
    return value or ()


def _names(value: object) -> object:
    """Parse a comma-separated list."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _is_algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        raise ValueError(f"must be some of {', '.join(ALGORITHMS)}, separated by commas")
    return name


Algorithms = Annotated[
    tuple[Annotated[str, AfterValidator(_is_algorithm)], ...],
    NoDecode,
    BeforeValidator(_names),
    Field(min_length=1),
]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)]


def _secrets_keys(value: object) -> object:
    """Parse keys separated by commas. An empty value is none."""
    if isinstance(value, str):
        return [read_key(part) for part in value.split(",") if part.strip()]
    return value or ()


# Validators run from the right: the value from a file is parsed too.
SecretsKeys = Annotated[tuple[bytes, ...], NoDecode, BeforeValidator(_secrets_keys), FROM_FILE]


class Settings(ProgramSettings):
    """Settings of the service and its workers. Times are in seconds, sizes in bytes."""

    # The database.
    database_url: Secret = Field(min_length=1)
    write_connections: Count = 4
    read_connections: Count = 4
    connection_timeout: Seconds = 1.0
    lock_timeout: Seconds = 2.0
    statement_timeout: Seconds = 5.0
    database_read_url: OptionalSecret = None
    replica_timeout: Seconds = 1.0

    # The process.
    grpc_host: str = "0.0.0.0"  # noqa: S104  # a container must be reachable from outside
    grpc_port: Port = 50051
    # How long a connection accepts new calls. The streams of watchers continue for an hour.
    grpc_connection_age: Seconds = 30.0
    # TLS of the gRPC ports. See `tls_files`.
    grpc_tls_certificate: Path | None = None
    grpc_tls_key: Path | None = None
    grpc_tls_client_ca: Path | None = None
    # If set, only this port demands the certificates of clients, and GRPC_PORT none.
    grpc_mtls_port: Port | None = None
    # The health service alone, without TLS.
    grpc_health_port: Port | None = None
    metrics_port: Port | None = 9464
    channelz_port: Port | None = None

    # Calls.
    request_timeout: Seconds = 30.0
    shutdown_grace: Seconds = 15.0
    # Open gRPC calls, including those whose request has not arrived yet. More than the
    # capacity of all queues.
    max_calls: Count = 10_000
    # Of one connection. A gateway needs one for each of its event streams.
    max_connection_calls: Count = 1_100
    max_batch_writes: Annotated[int, Field(ge=1, le=1000)] = 256
    # 1 turns shared calls off, as in every database that is distributed by organization.
    max_call_organizations: Count = 256
    # Room for at least one batch of 1,000.
    max_queued_writes: Annotated[int, Field(ge=1000)] = 4096
    max_queued_reads: Count = 512
    # How far ahead an appointment may be held.
    max_hold: Annotated[float, Field(ge=1, le=8_640_000)] = 24 * 3600.0

    # Rate limits: calls in a window of some seconds. A batch counts as its writes.
    rate_limit_per_credential: Count | None = None
    rate_limit_per_organization: Count | None = None
    rate_limit_window: Annotated[float, Field(ge=1, le=3600)] = 10.0

    # Access. The service alone decides; gateways only forward credentials.
    access_control: Literal["on", "off"] = "off"
    reflection: Literal["on", "off", "authenticated"] = "on"
    # The file of the callers whose certificates are credentials.
    access_certificates: Path | None = None
    # Tokens (JWTs). Without the keys only API keys are accepted.
    jwt_keys_file: Path | None = None
    jwt_keys_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_algorithms: Algorithms = ("RS256", "ES256", "EdDSA")
    jwt_organizations_claim: str = Field(default="organizations", min_length=1)
    jwt_scope_claim: str = Field(default="scope", min_length=1)
    # How much later than its time a token expires here, as clocks differ.
    jwt_leeway: Annotated[float, Field(ge=0, le=300)] = 10.0
    jwt_keys_interval: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    # How long the keys are used that were read last, while they cannot be read again.
    jwt_keys_max_age: Annotated[float, Field(ge=1, le=8_640_000)] = 3600.0

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
    amqp_url: OptionalSecret = None
    amqp_timeout: Seconds = 2.0
    event_poll_interval: Seconds = 0.2
    event_lease: Annotated[float, Field(ge=1, le=3600)] = 10.0

    # Keys that encrypt secrets in the database, of 32 bytes in base64, separated by commas. The
    # first one encrypts. The service and its workers need the same value.
    secrets_keys: SecretsKeys = ()

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

    @field_validator("jwt_keys_url")
    @classmethod
    def _keys_url_is_safe(cls, url: str | None) -> str | None:
        # Who can change the answer can make tokens.
        if url is not None and not _is_safe(url):
            raise ValueError(
                "must be an https URL without a user; http is allowed for loopback only"
            )
        return url

    @model_validator(mode="after")
    def _access_is_complete(self) -> Self:
        tokens = [
            name.upper()
            for name in ("jwt_keys_file", "jwt_keys_url", "jwt_issuer", "jwt_audience")
            if getattr(self, name) is not None
        ]
        if self.access_control == "off":
            if tokens:
                raise ValueError(f"{tokens[0]} needs ACCESS_CONTROL=on")
            if self.reflection == "authenticated":
                raise ValueError("REFLECTION=authenticated needs ACCESS_CONTROL=on")
            if self.rate_limit_per_credential is not None:
                raise ValueError("RATE_LIMIT_PER_CREDENTIAL needs ACCESS_CONTROL=on")
        elif self.jwt_keys_file is not None and self.jwt_keys_url is not None:
            raise ValueError("JWT_KEYS_FILE and JWT_KEYS_URL exclude each other")
        elif tokens and len(tokens) < 3:
            raise ValueError(
                "tokens need JWT_KEYS_FILE or JWT_KEYS_URL, JWT_ISSUER and JWT_AUDIENCE"
            )
        return self

    @model_validator(mode="after")
    def _certificates_are_shown(self) -> Self:
        if self.access_certificates is not None:
            if self.access_control == "off":
                raise ValueError("ACCESS_CERTIFICATES needs ACCESS_CONTROL=on")
            if self.grpc_tls_client_ca is None:
                raise ValueError("ACCESS_CERTIFICATES needs GRPC_TLS_CLIENT_CA")
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

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        require_pair(self, "grpc_tls_certificate", "grpc_tls_key")
        if self.grpc_tls_client_ca is not None and self.grpc_tls_certificate is None:
            raise ValueError("GRPC_TLS_CLIENT_CA needs GRPC_TLS_CERTIFICATE and GRPC_TLS_KEY")
        if self.grpc_mtls_port is not None and self.grpc_tls_client_ca is None:
            raise ValueError("GRPC_MTLS_PORT needs GRPC_TLS_CLIENT_CA")
        return self

    @property
    def tls_files(self) -> CertificateFiles | None:
        """The files for TLS of the gRPC ports, None without TLS."""
        return certificate_files(self, "grpc_tls_certificate", "grpc_tls_key", "grpc_tls_client_ca")

    @property
    def change_poll_interval(self) -> float:
        """The shortest interval at which workers poll for changes."""
        return min(self.webhook_poll_interval, self.event_poll_interval)

    def for_database(self, *, distributed: bool) -> Self:
        """Return the settings that suit the database.

        A distributed one runs a call on the node of its organization, so organizations share none.
        """
        return self.model_copy(update={"max_call_organizations": 1}) if distributed else self

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts of the primary."""
        return Timeouts(
            connection=self.connection_timeout,
            lock=self.lock_timeout,
            statement=self.statement_timeout,
        )


def _is_safe(url: str) -> bool:
    """Return whether nobody on the way can change what a URL returns."""
    try:
        parsed = URL(url)
        host = parsed.host or ""
        if not host or parsed.user is not None or parsed.password is not None:
            return False
        if parsed.scheme == "https":
            return True
        return parsed.scheme == "http" and (host == "localhost" or ip_address(host).is_loopback)
    except ValueError:
        return False
