"""Settings of the gateway, from environment variables."""

from typing import Annotated

from pydantic import Field, field_validator

from runtime.settings import Count, Port, ProgramSettings, Seconds

# The schemes of gRPC target names.
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


class Settings(ProgramSettings):
    """Settings of the gateway. Times are in seconds, sizes in bytes."""

    gateway_host: str = "0.0.0.0"  # noqa: S104  a container's port must be reachable
    gateway_port: Port = 3000
    service_address: str = "localhost:50051"
    """Host and port, or a gRPC target name such as `dns:///service:50051`."""
    service_connections: Count = 1
    """Set it to the number of addresses of the service: each connection uses one at a time."""
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
    gateway_shutdown_grace: Annotated[float, Field(ge=0, le=3600)] = 15
    """Time limit for requests in flight after SIGTERM."""

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
