"""The values of the model: contents, writes, answers, and what is stored.

Times of appointments are minutes. The time of holds is counted in ticks: a hold until a tick is
valid during that tick and has expired in the next one. The tests decide when a tick ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# The longest hold, in ticks, and how far ahead alternatives may start, in minutes.
MAX_HOLD = 1_000_000
SEARCHED = 31 * 24 * 60
LONGEST = 3653 * 24 * 60
CONTENT_FIELDS = (
    "resource_id",
    "additional_resource_ids",
    "start",
    "end",
    "title",
    "attributes",
    "created_at",
    "updated_at",
    "hold_until",
)
SUCCESSES = frozenset(
    {"CREATED", "UPDATED", "CONFIRMED", "CANCELLED", "REDACTED", "UNCHANGED", "STALE"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The content of an appointment. None stands for an absent field."""

    resource_id: str = ""
    additional_resource_ids: tuple[str, ...] = ()
    start: int
    end: int
    title: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    created_at: int | None = None
    updated_at: int | None = None
    hold_until: int | None = None

    @property
    def resources(self) -> tuple[str, ...]:
        return self.resource_id, *self.additional_resource_ids

    @property
    def valid(self) -> bool:
        return (
            0 < self.end - self.start <= LONGEST
            and len({*self.resources}) == len(self.resources)
            and "" not in self.additional_resource_ids
        )

    def redacted(self) -> "Content":
        return replace(self, title="", attributes={})

    def shared_with(self, other: "Content") -> tuple[str, ...]:
        """Return the resources that both need at the same time."""
        if other.end <= self.start or self.end <= other.start:
            return ()
        return tuple(resource for resource in self.resources if resource in other.resources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An appointment as stored. A hold whose time has passed is HELD until that is recorded."""

    id: str
    content: Content
    state: str
    version: int
    revision: int
    # The caller's own time of the cancel, which is not shown.
    cancel_updated_at: int | None = None
    # The latest time of the caller's own that a redaction has found here.
    redacted_updated_at: int | None = None
    redacted: bool = False

    @property
    def guard(self) -> int | None:
        """The minimum time of a later write."""
        if self.cancel_updated_at is not None:
            return self.cancel_updated_at
        return self.content.updated_at

    @property
    def etag(self) -> tuple[int, bool]:
        """What the etag stands for. It changes when a hold expires, recorded or not."""
        return self.revision, self.state == "EXPIRED"

    def at(self, tick: int) -> "Stored":
        """Return it as everybody sees it at a time."""
        hold_until = self.content.hold_until
        if self.state == "HELD" and hold_until is not None and hold_until < tick:
            return replace(self, state="EXPIRED")
        return self


ANY_ETAG = (0, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A write of one of five kinds: UPSERT, UPDATE, CONFIRM, CANCEL, REDACT."""

    kind: str
    id: str
    # Of an upsert or an update, which changes only `fields`.
    content: Content | None = None
    fields: frozenset[str] = frozenset()
    attributes_patch: Mapping[str, Any] | None = None
    allow_missing: bool = False
    create_only: bool = False
    suggest: int = 0
    # The time of a cancel.
    cancel_updated_at: int | None = None
    # The etag that is expected, None for no condition.
    expected: tuple[int, bool] | None = None
    key: str | None = None
    validate_only: bool = False
    # The write was sent without an id. `id` is the one that the service made, once it is known.
    generated: bool = False

    @property
    def identity(self) -> object:
        """What a repetition with the same idempotency key has in common: kind, id and content.

        An id that the service made is not compared, as each repetition gets another one.
        """
        content = [
            (name, getattr(self.content, name))
            for name in CONTENT_FIELDS
            if self.content and (self.kind == "UPSERT" or name in self.fields)
        ]
        id = None if self.generated else self.id
        return self.kind, id, content, self.attributes_patch, self.cancel_updated_at

    def redacted(self) -> "Write":
        """Return what is applied of a write that was accepted before a redaction."""
        content = self.content and self.content.redacted()
        return replace(self, content=content, attributes_patch=None)

    def named(self, name: str) -> Any:
        """Return the value of a field, None if the write does not set it."""
        if self.content is None or (self.kind == "UPDATE" and name not in self.fields):
            return None
        return getattr(self.content, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """`index` is that of another item of an atomic batch."""

    id: str
    start: int
    end: int
    version: int
    resource_ids: tuple[str, ...]
    index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`result` is the outcome of a write, or the reason of its refusal."""

    result: str
    stored: Stored | None = None
    conflicts: tuple[Conflict, ...] = ()
    # Start and end of each.
    alternatives: tuple[tuple[int, int], ...] = ()

    @property
    def refused(self) -> bool:
        return self.result not in SUCCESSES


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An entry of the history, recorded during a tick."""

    change: str
    stored: Stored
    key: str | None
    tick: int

    @property
    def is_to_redact(self) -> bool:
        """Return whether it has something that a redaction erases."""
        content = self.stored.content
        return self.change != "REDACTED" and bool(content.title or content.attributes or self.key)

    def redacted(self) -> "Change":
        key = self.key if self.change == "REDACTED" else None
        stored = replace(self.stored, content=self.stored.content.redacted())
        return replace(self, stored=stored, key=key)
