"""Settings from environment variables: shared types, shared settings, and error messages."""

from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from runtime.files import SettingFile
from runtime.secrets import SecretFiles
from runtime.tls import CertificateFiles, PairFiles

# 0 selects any free port.
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
# Seconds, up to an hour.
Seconds = Annotated[float, Field(ge=0.001, le=3600)]


class ProgramSettings(BaseSettings):
    """The settings that all programs have. Each is the environment variable of that name.

    An empty value is None, which turns the feature off. Fields of the types in `runtime.secrets`
    can come from files.
    """

    model_config = SettingsConfigDict(frozen=True, env_parse_none_str="")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read secret settings from files too."""
        return init_settings, SecretFiles(settings_cls), env_settings

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    max_message_bytes: Annotated[int, Field(ge=1024)] = 3 * 1024 * 1024
    """The largest message between gateway and service. The response to a batch must fit into
    the 4 MiB that gRPC clients accept by default."""
    watch_patience: Seconds = 30.0
    """How long a watch waits for a watcher that reads nothing, or for a service or database
    that is unavailable."""


def require_pair(settings: ProgramSettings, certificate: str, key: str) -> None:
    """Raise ValueError if only one of two fields, a certificate and its key, is set."""
    if (getattr(settings, certificate) is None) is not (getattr(settings, key) is None):
        raise ValueError(f"{certificate.upper()} and {key.upper()} must be set together")


def certificate_files(
    settings: ProgramSettings, certificate: str, key: str, authorities: str | None = None
) -> CertificateFiles | None:
    """Return the files that these fields name, None if none is set."""

    def file(name: str | None) -> SettingFile | None:
        path = name and getattr(settings, name)
        return SettingFile(setting=name.upper(), path=path) if name and path else None

    chain, private, trusted = file(certificate), file(key), file(authorities)
    if chain is None and trusted is None:
        return None
    return CertificateFiles(
        pair=PairFiles(certificate=chain, key=private) if chain and private else None,
        authorities=trusted,
    )


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
