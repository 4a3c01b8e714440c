"""Settings that are secret. `NAME_FILE` may name a file that contains the value of `NAME`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

SUFFIX = "_FILE"


@dataclass(frozen=True, slots=True)
class _Given:
    """A secret whose `NAME_FILE` is set, and perhaps its `NAME` too."""

    name: str
    environment: Mapping[str, str]

    def read(self) -> str:
        """Return the content without the end of its last line. Raises ValueError without it."""
        setting = self.name + SUFFIX
        path = Path(self.environment[setting])
        if self.environment.get(self.name):
            raise ValueError(f"{self.name} and {setting} must not both be set")
        try:
            secret = path.read_text("utf-8").rstrip("\r\n")
        except OSError as error:
            raise ValueError(f"{setting}: {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{setting}: {path} is not UTF-8") from None
        if not secret:
            raise ValueError(f"{setting}: {path} is empty")
        return secret


def _resolved(value: object) -> object:
    return value.read() if isinstance(value, _Given) else value


FROM_FILE = BeforeValidator(_resolved)
# The types of secret fields. Others have this validator as the last one.
Secret = Annotated[str, FROM_FILE]
OptionalSecret = Annotated[str | None, FROM_FILE]


def is_secret(field: FieldInfo) -> bool:
    """Return whether a setting can come from a file."""
    return FROM_FILE in field.metadata


def secret_of(name: str, environment: Mapping[str, str]) -> str | None:
    """Return a secret variable, from its file if `NAME_FILE` is set; None without either.

    Raises ValueError if both are set, or the file cannot be used. It contains no value.
    """
    if environment.get(name + SUFFIX):
        return _Given(name, environment).read()
    return environment.get(name) or None


class SecretFiles(PydanticBaseSettingsSource):
    """The secret settings whose `NAME_FILE` is set. The fields themselves read the files."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = field_name.upper()
        given = is_secret(field) and os.environ.get(name + SUFFIX)
        return _Given(name, os.environ) if given else None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in found.items() if value is not None}
