"""What the environment says: validated at start, one line for everything that is wrong."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=0, le=65535)]
# An empty value switches the port off.
OptionalPort = Annotated[Port | None, BeforeValidator(lambda value: None if value == "" else value)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseSettings):
    """Settings of the service; each is the environment variable of its name in capitals."""

    model_config = SettingsConfigDict(frozen=True)

    database_url: str = Field(min_length=1)
    database_read_url: str | None = None
    grpc_host: str = "0.0.0.0"  # noqa: S104  # a container's port is reached from outside
    grpc_port: Port = 50051
    metrics_port: OptionalPort = 9464
    channelz_port: OptionalPort = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"

    write_connections: Count = 4
    read_connections: Count = 4
    max_batch_writes: Annotated[int, Field(ge=1, le=1000)] = 256
    # A whole batch of 1,000 must find room.
    max_queued_writes: Annotated[int, Field(ge=1000)] = 4096
    max_queued_reads: Count = 512
    max_message_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024

    connection_timeout: Seconds = 1.0
    lock_timeout: Seconds = 2.0
    statement_timeout: Seconds = 5.0
    request_timeout: Seconds = 30.0
    shutdown_grace: Seconds = 15.0
