"""Settings from environment variables: shared types, shared settings, and error messages."""

from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

# 0 selects any free port.
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
# Seconds, up to an hour.
Seconds = Annotated[float, Field(ge=0.001, le=3600)]


class ProgramSettings(BaseSettings):
    """The settings that all programs have. Each is the environment variable of that name.

    An empty value is None, which turns the feature off.
    """

    model_config = SettingsConfigDict(frozen=True, env_parse_none_str="")

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    max_message_bytes: Annotated[int, Field(ge=1024)] = 3 * 1024 * 1024
    """The largest message between gateway and service. The response to a batch must fit into
    the 4 MiB that gRPC clients accept by default."""
    watch_patience: Seconds = 30.0
    """How long a watch waits for a watcher that reads nothing, or for a service or database
    that is unavailable."""


def faults(error: ValidationError) -> list[str]:
    """Return an error message per invalid variable, without its value."""
    return [
        ": ".join(
            [
                *(str(part).upper() for part in mistake["loc"]),
                mistake["msg"].removeprefix("Value error, "),
            ]
        )
        for mistake in error.errors(include_url=False, include_input=False)
    ]
