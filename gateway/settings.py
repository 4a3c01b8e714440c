"""Settings of the gateway, from environment variables."""

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=0, le=65535)]
# Of gRPC's names, which may list addresses or ask a resolver.
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")
Seconds = Annotated[float, Field(ge=0.001, le=3600)]


class Settings(BaseSettings):
    """What can be set; every name is the environment variable's, in lower case.

    Times are in seconds, sizes in bytes. Port 0 is any free port. An empty value is none.
    """

    model_config = SettingsConfigDict(frozen=True, env_parse_none_str="")

    gateway_host: str = "0.0.0.0"  # noqa: S104  a container's port must be reachable
    gateway_port: Port = 3000
    service_address: str = "localhost:50051"
    """Host and port, or a name as gRPC has them, such as `dns:///service:50051`."""
    service_connections: Annotated[int, Field(ge=1)] = 1
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
    max_message_bytes: Annotated[int, Field(ge=1024)] = 3 * 1024 * 1024
    """The service's limit, under the service's name. JSON within the body's limit can exceed
    it, since small numbers in free JSON grow fivefold."""
    gateway_max_in_flight: Annotated[int, Field(gt=0)] = 1024
    """Calls handled at the same time; one more is refused at once."""
    gateway_max_streams: Annotated[int, Field(gt=0)] = 1000
    """Event streams open at the same time, which are not counted as calls."""
    gateway_heartbeat_interval: Seconds = 15
    """A comment is sent on an event stream after so long without an event."""
    watch_patience: Seconds = 30
    """Under the service's name: longest that an event stream waits for a service that is away,
    and for a reader that takes nothing."""
    gateway_shutdown_grace: Annotated[float, Field(ge=0, le=3600)] = 15
    """Longest that requests in flight may go on after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"

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
