"""Settings of the gateway, from environment variables."""

from typing import Annotated

from pydantic import Field, field_validator

from runtime.settings import Count, Port, ProgramSettings, Seconds

# Of gRPC's names, which may list addresses or ask a resolver.
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


class Settings(ProgramSettings):
    """Settings of the gateway. Times are in seconds, sizes in bytes."""

    gateway_host: str = "0.0.0.0"  # noqa: S104  a container's port must be reachable
    gateway_port: Port = 3000
    service_address: str = "localhost:50051"
    """Host and port, or a name as gRPC has them, such as `dns:///service:50051`."""
    service_connections: Count = 1
    """As many as the service has addresses: each uses one of them at a time."""
    gateway_metrics_port: Port | None = 9465
    """Empty: no metrics are served."""
    gateway_timeout: Seconds = 10
    """Deadline of each call to the service."""
    gateway_keepalive_timeout: Seconds = 75
    """How long a connection may stay without a request. Longer than load balancers keep it,
    often 60: one that is closed here first may just be taken for the next request."""
    gateway_header_timeout: Seconds = 15
    """Longest that a caller may take to send the head of a request."""
    gateway_body_timeout: Seconds = 15
    """Longest that a caller may take to send a request's body."""
    gateway_max_body_bytes: Annotated[int, Field(gt=0)] = 1024 * 1024
    """As a message of the service a body may be larger than its JSON: small numbers in free
    JSON grow fivefold. So `max_message_bytes` can refuse what this allows."""
    gateway_max_in_flight: Annotated[int, Field(gt=0)] = 1024
    """Calls handled at the same time; one more is refused at once."""
    gateway_max_streams: Annotated[int, Field(gt=0)] = 1000
    """Event streams open at the same time, which are not counted as calls."""
    gateway_heartbeat_interval: Seconds = 15
    """A comment is sent on an event stream after so long without an event."""
    gateway_shutdown_grace: Annotated[float, Field(ge=0, le=3600)] = 15
    """Longest that requests in flight may go on after SIGTERM."""

    @field_validator("service_address")
    @classmethod
    def _service_has_host_and_port(cls, address: str) -> str:
        """gRPC takes whatever has no port for one at port 443, and waits for it for ever."""
        if address.startswith(_SCHEMES):
            return address
        host, _, port = address.rpartition(":")
        if not (port.isascii() and port.isdecimal() and 0 < int(port) <= 65535):
            raise ValueError("must be a host and a port, like localhost:50051 or [::1]:50051")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ValueError("an address of IPv6 stands in brackets, like [::1]:50051")
        if not host.strip("[]"):
            raise ValueError("must have a host before the port, like localhost:50051")
        return address
