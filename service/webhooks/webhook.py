"""What webhooks are: as stored, as a worker holds them, and what came of sending."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from service.domain import Outcome


class Header(NamedTuple):
    """A header of the caller's own. Without a value: the one that is stored, not to be told."""

    name: str
    value: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookContent:
    """What a caller sets. No `changes` are all."""

    url: str
    description: str
    changes: frozenset[Outcome]
    disabled: bool
    headers: tuple[Header, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A webhook as stored. `failing_since` is None while sending does not fail."""

    organization_id: str
    id: str
    content: WebhookContent
    disabled_reason: str
    delivered_revision: int
    failed_attempts: int
    failing_since: datetime | None
    next_attempt_at: datetime
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An attempt to send a change, from the log; `number` orders those of a webhook."""

    number: int
    revision: int
    attempt: int
    attempted_at: datetime
    duration_ms: int
    http_status: int | None
    error: str


class Claim(NamedTuple):
    """A webhook that this worker may send to for the time of its lease.

    `fence` tells this claim from later ones. `live_secrets` are those that sign now, the
    newest first; each of the `header_values` belongs to a name.
    """

    organization_id: str
    id: str
    fence: int
    url: str
    changes: list[str]
    live_secrets: list[str]
    header_names: list[str]
    header_values: list[str]
    disabled: bool
    cursor: int
    attempts: int
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of sending a change once.

    `seconds` is how long it took, `ended` the monotonic time at which it did. `error` is
    empty if it was taken. `retry_after` (seconds) is what the receiver asked for.
    """

    result: str
    seconds: float = 0.0
    ended: float = 0.0
    http_status: int | None = None
    error: str = ""
    retry_after: float | None = None

    @property
    def taken(self) -> bool:
        return not self.error
