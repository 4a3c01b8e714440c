"""Settings from environment variables: the types that programs share, and what is wrong."""

from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

# 0 is any free port.
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
# Seconds, up to an hour.
Seconds = Annotated[float, Field(ge=0.001, le=3600)]


class ProgramSettings(BaseSettings):
    """Settings of every program; each is the environment variable of its name in capitals.

    An empty value is none: it switches off what has none.
    """

    model_config = SettingsConfigDict(frozen=True, env_parse_none_str="")

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    max_message_bytes: Annotated[int, Field(ge=1024)] = 3 * 1024 * 1024
    """The largest message between gateway and service: room for the answer of a batch in the
    4 MiB that a gRPC client takes by default."""
    watch_patience: Seconds = 30.0
    """How long a watcher that takes nothing, or a service or database that is away, is
    waited for."""


def faults(error: ValidationError) -> list[str]:
    """Say which variables are wrong, and why, without repeating their values."""
    return [
        ": ".join(
            [
                *(str(part).upper() for part in mistake["loc"]),
                mistake["msg"].removeprefix("Value error, "),
            ]
        )
        for mistake in error.errors(include_url=False, include_input=False)
    ]
