"""Callers by the certificates that they show, whose identities a file lists."""

import tomllib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from runtime.files import SettingFile
from service import rules
from service.access.principal import SCOPES, Principal

MAX_SUBJECT = 256

# How `service.rpc.peer` begins an identity of each kind.
KINDS = ("spiffe://", "dns:", "cn:")

Callers = dict[str, Principal]
"""By the identities of their certificates."""

Text = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    """What a certificate allows."""

    model_config = ConfigDict(extra="forbid", strict=True)

    organizations: Literal["*"] | Annotated[list[Text], Field(min_length=1)]
    scopes: Annotated[list[str], Field(min_length=1)]
    subject: str | None = None


_ENTRIES = TypeAdapter(dict[str, _Entry])


def read_callers(file: SettingFile) -> Callers:
    """Return the callers that a file lists. Raises FilesUnfit.

    The file is TOML with a table for each identity:

        ["spiffe://example.org/booking"]
        organizations = ["clinic"]    # or "*" for all
        scopes = ["appointments.read", "appointments.write"]
        subject = "booking"           # the actor of its writes; if left out, the identity
    """
    try:
        entries = _ENTRIES.validate_python(tomllib.loads(file.read().decode()))
    except UnicodeDecodeError as error:
        raise file.unfit("is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise file.unfit(f"is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        identity, *place = first["loc"]
        raise file.unfit(
            f"is wrong at {identity}, {' '.join(str(part) for part in place)}: {first['msg']}"
        ) from error
    return {identity: _principal(file, identity, entry) for identity, entry in entries.items()}


def _principal(file: SettingFile, identity: str, entry: _Entry) -> Principal:
    subject = identity if entry.subject is None else entry.subject
    unknown = sorted({*entry.scopes} - {*SCOPES})
    if not identity.startswith(KINDS):
        problem = f"an identity begins with {', '.join(KINDS)}"
    elif unknown:
        problem = f"{unknown[0]} is no scope; scopes are {', '.join(SCOPES)}"
    elif not 0 < len(subject) <= MAX_SUBJECT or rules.CONTROL.search(subject):
        problem = (
            f"the subject must have 1 to {MAX_SUBJECT} characters, none of them control characters"
        )
    else:
        return Principal(
            subject=subject,
            credential_id=f"certificate:{identity}",
            organizations=None if entry.organizations == "*" else frozenset(entry.organizations),
            scopes=frozenset(entry.scopes),
        )
    raise file.unfit(f"is wrong at {identity}: {problem}")
