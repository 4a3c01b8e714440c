"""Webhooks as they are stored and claimed, and the outcome of sending to them."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from service.domain import Change, ChangeFilter


class Header(NamedTuple):
    """A custom header. `value` None stands for the stored value, which is never returned."""

    name: str
    value: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookContent:
    """The part of a webhook that callers set."""

    url: str
    description: str
    selected: ChangeFilter
    disabled: bool
    headers: tuple[Header, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A webhook as stored. `failing_since` is None unless the last attempt failed."""

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
    """An attempt to send a change, from the log. `number` orders the attempts of a webhook."""

    number: int
    revision: int
    attempt: int
    attempted_at: datetime
    duration_ms: int
    http_status: int | None
    error: str


class Claim(NamedTuple):
    """A webhook that this worker has leased.

    `fence` increases with every claim. `live_secrets` are those that sign now, newest first.
    `header_values` are in the order of `header_names`. Both are as stored: perhaps encrypted.
    """

    organization_id: str
    id: str
    fence: int
    url: str
    changes: list[str]
    resource_id: str | None
    live_secrets: list[str]
    header_names: list[str]
    header_values: list[str]
    disabled: bool
    cursor: int
    attempts: int
    updated_at: datetime

    @property
    def selected(self) -> ChangeFilter:
        return ChangeFilter(
            resource_id=self.resource_id, changes=frozenset(map(Change, self.changes))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The outcome of sending a change once.

    `seconds` is the duration, `ended` the monotonic time of the end. `error` is empty if the
    change was delivered. `retry_after` (seconds) is the receiver's Retry-After.
    """

    result: str
    seconds: float = 0.0
    ended: float = 0.0
    http_status: int | None = None
    error: str = ""
    retry_after: float | None = None

    @property
    def delivered(self) -> bool:
        return not self.error
