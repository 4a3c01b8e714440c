"""Settings of the gateway, from environment variables."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from runtime.settings import (
    Port,
    ProgramSettings,
    Seconds,
    certificate_files,
    require_pair,
)
from runtime.tls import CertificateFiles

# The schemes of gRPC target names.
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


# An origin as browsers send it (RFC 6454, section 6.2).
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_DEFAULT_PORTS = re.compile("http://.*:80|https://.*:443")


def _split(value: object) -> object:
    """Split a comma-separated list. An empty value is an empty list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value or ()


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what no browser sends as the origin of a page, and so would allow nothing."""
    if "*" in origins and len(origins) > 1:
        raise ValueError("must be either * or a list of origins")
    for origin in origins:
        if origin == "*":
            continue
        if origin == "null":
            raise ValueError("must not contain null, which is the origin of any sandboxed page")
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"must be origins such as https://booking.example, separated by commas, or *:"
                f" {origin!r} is none (scheme and host in lower case, no path, no slash at the end)"
            )
        if _DEFAULT_PORTS.fullmatch(origin):
            raise ValueError(
                f"{origin!r} must be without its port, because browsers leave out a default port"
            )
    return origins


Origins = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_origins)
]


class Settings(ProgramSettings):
    """Settings of the gateway. Times are in seconds, sizes in bytes."""

    gateway_host: str = "0.0.0.0"  # noqa: S104  a container's port must be reachable
    gateway_port: Port = 3000
    service_address: str = "localhost:50051"
    """Host and port, or a gRPC target name such as `dns:///service:50051`."""
    service_tls_ca: Path | None = None
    """Authorities of the service's certificate. If set, the service is called by TLS."""
    service_tls_certificate: Path | None = None
    """The certificate that the gateway shows to the service."""
    service_tls_key: Path | None = None
    service_tls_server_name: str | None = None
    """The name in the service's certificate, if it is not the host of SERVICE_ADDRESS."""
    gateway_tls_certificate: Path | None = None
    """If set, the gateway serves HTTPS instead of HTTP."""
    gateway_tls_key: Path | None = None
    gateway_metrics_port: Port | None = 9465
    """If empty, no metrics are served."""
    gateway_timeout: Seconds = 10
    """Deadline of each call to the service."""
    gateway_keepalive_timeout: Seconds = 75
    """How long an idle connection is kept. It must be longer than load balancers keep idle
    connections (often 60 s); else they may send a request just when this side closes."""
    gateway_header_timeout: Seconds = 15
    """Time limit for receiving the head of a request."""
    gateway_body_timeout: Seconds = 15
    """Time limit for receiving the body of a request."""
    gateway_max_body_bytes: Annotated[int, Field(gt=0)] = 1024 * 1024
    """A body may be larger as a message than as JSON: small numbers in free JSON grow
    fivefold. So `max_message_bytes` may refuse a body that this limit allows."""
    gateway_max_in_flight: Annotated[int, Field(gt=0)] = 1024
    """Maximum number of calls in flight. Further calls are refused at once."""
    gateway_max_streams: Annotated[int, Field(gt=0)] = 1000
    """Maximum number of open event streams, which do not count as calls."""
    gateway_heartbeat_interval: Seconds = 15
    """Interval of the comments on an event stream without events."""
    gateway_cors_origins: Origins = ()
    """Origins whose pages may call, such as `https://booking.example`, or `*` for all."""
    gateway_docs: Literal["on", "off"] = "on"
    """Whether the OpenAPI document and its viewer are served."""
    gateway_page: Literal["on", "off"] = "on"
    """Whether the calendar is served at `/`."""
    gateway_shutdown_grace: Annotated[float, Field(ge=0, le=3600)] = 15
    """Time limit for requests in flight after SIGTERM."""

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        require_pair(self, "gateway_tls_certificate", "gateway_tls_key")
        require_pair(self, "service_tls_certificate", "service_tls_key")
        if self.service_tls_ca is None:
            for name in ("service_tls_certificate", "service_tls_server_name"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name.upper()} needs SERVICE_TLS_CA")
        return self

    @property
    def https_files(self) -> CertificateFiles | None:
        """The files for HTTPS, None without it."""
        return certificate_files(self, "gateway_tls_certificate", "gateway_tls_key")

    @property
    def service_tls_files(self) -> CertificateFiles | None:
        """The files for TLS to the service, None without it."""
        return certificate_files(
            self, "service_tls_certificate", "service_tls_key", "service_tls_ca"
        )

    @field_validator("service_address")
    @classmethod
    def _service_has_host_and_port(cls, address: str) -> str:
        """Require a port: without one gRPC uses port 443, and waits forever."""
        if address.startswith(_SCHEMES):
            return address
        host, _, port = address.rpartition(":")
        if not (port.isascii() and port.isdecimal() and 0 < int(port) <= 65535):
            raise ValueError("must be a host and a port, like localhost:50051 or [::1]:50051")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ValueError("must have an IPv6 address in brackets, like [::1]:50051")
        if not host.strip("[]"):
            raise ValueError("must have a host before the port, like localhost:50051")
        return address
