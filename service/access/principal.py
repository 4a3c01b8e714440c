"""The caller of a call, as its credential describes it."""

from dataclasses import dataclass

READ = "appointments.read"
WRITE = "appointments.write"
WEBHOOKS = "webhooks"
ADMIN = "admin"

SCOPES = (READ, WRITE, WEBHOOKS, ADMIN)
"""What a credential can allow. No scope includes another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller whose credential was checked.

    `subject` is the actor of its writes. `credential_id` is not secret. It is the same for
    each call with the credential, and for an API key also after its secret was rotated.
    """

    subject: str
    credential_id: str
    organizations: frozenset[str] | None
    """The organizations that it may call for; None for all."""
    scopes: frozenset[str]
