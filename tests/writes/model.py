"""The contract as a simple in-memory model of one organization."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The content of an appointment. Times are minutes; None stands for an absent field."""

    resource: str
    start: int
    end: int
    title: str
    created_at: int | None
    updated_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    id: str
    content: Content
    cancelled: bool
    version: int
    revision: int
    # The caller's own time of the cancel, which is not shown.
    cancel_updated_at: int | None = None

    @property
    def guard(self) -> int | None:
        """The minimum time of a later write."""
        if self.cancel_updated_at is not None:
            return self.cancel_updated_at
        return self.content.updated_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An entry of the history."""

    change: str
    stored: Stored
    write: "Write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """An upsert, or a cancel if `content` is None, with a time of its own."""

    id: str
    content: Content | None
    cancel_updated_at: int | None = None
    # The revision of the version that must be stored, 0 for any, None for no condition.
    expected: int | None = None
    create_only: bool = False
    key: str | None = None
    validate_only: bool = False

    @property
    def updated_at(self) -> int | None:
        return self.content.updated_at if self.content else self.cancel_updated_at

    def same_as(self, other: "Write") -> bool:
        return (self.id, self.content, self.cancel_updated_at) == (
            other.id,
            other.content,
            other.cancel_updated_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`result` is the outcome of a write, or the reason of its refusal."""

    result: str
    stored: Stored | None = None
    conflicts: tuple[str, ...] = ()


@dataclass(slots=True)
class Model:
    stored: dict[str, Stored] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    # The first result of each idempotency key.
    keys: dict[str, tuple[Write, Answer]] = field(default_factory=dict)

    @property
    def revision(self) -> int:
        return len(self.history)

    def apply(self, write: Write) -> Answer:
        if write.key is not None and write.key in self.keys:
            first, answer = self.keys[write.key]
            return answer if write.same_as(first) else Answer(result="IDEMPOTENCY_KEY_REUSED")
        answer = self._decide(write)
        if write.key is not None and answer.stored is not None and not write.validate_only:
            self.keys[write.key] = write, answer
        return answer

    def _decide(self, write: Write) -> Answer:  # noqa: PLR0911  # as many as the contract has
        before = self.stored.get(write.id)
        if write.content is None and before is None:
            return Answer(result="APPOINTMENT_NOT_FOUND")
        if write.expected is not None and (
            before is None or write.expected not in (0, before.revision)
        ):
            return Answer(result="ETAG_MISMATCH")
        if write.create_only and before is not None:
            return Answer(result="APPOINTMENT_EXISTS")
        if before is not None and _stale(write, before):
            return Answer(result="STALE", stored=before)
        if write.content is None:
            assert before is not None
            if before.cancelled:
                return Answer(result="UNCHANGED", stored=self._cancel_again(write, before))
            return self._write(write, "CANCELLED", before.content)
        if before is not None and not before.cancelled and _same(write.content, before.content):
            return Answer(result="UNCHANGED", stored=before)
        conflicts = [
            other
            for other in self.stored.values()
            if other.id != write.id and not other.cancelled and _overlap(other, write.content)
        ]
        if conflicts:
            by_start = sorted(conflicts, key=lambda other: other.content.start)
            return Answer(
                result="TIME_RANGE_CONFLICT", conflicts=tuple(other.id for other in by_start)
            )
        content = write.content
        if content.created_at is None and before is not None:
            content = replace(content, created_at=before.content.created_at)
        return self._write(write, "UPDATED" if before else "CREATED", content)

    def listed(
        self,
        *,
        as_of: int | None = None,
        resource: str | None = None,
        start: int | None = None,
        end: int | None = None,
        cancelled: bool = False,
    ) -> list[Stored]:
        state: dict[str, Stored] = {}
        for entry in self.history[:as_of]:
            state[entry.stored.id] = entry.stored
        found = [
            item
            for item in state.values()
            if (cancelled or not item.cancelled)
            and (resource is None or item.content.resource == resource)
            and (start is None or item.content.end > start)
            and (end is None or item.content.start < end)
        ]
        return sorted(found, key=lambda item: (item.content.start, item.id))

    def _cancel_again(self, write: Write, before: Stored) -> Stored:
        """Store the time of the later cancel. No visible field changes."""
        if write.cancel_updated_at is None or write.validate_only:
            return before
        after = replace(before, cancel_updated_at=write.cancel_updated_at)
        self.stored[write.id] = after
        return after

    def _write(self, write: Write, change: str, content: Content) -> Answer:
        before = self.stored.get(write.id)
        after = Stored(
            id=write.id,
            content=content,
            cancelled=write.content is None,
            version=before.version + 1 if before else 1,
            # The result of `validate_only` has no revision.
            revision=0 if write.validate_only else self.revision + 1,
            cancel_updated_at=write.cancel_updated_at,
        )
        if not write.validate_only:
            self.stored[write.id] = after
            self.history.append(Change(change=change, stored=after, write=write))
        return Answer(result=change, stored=after)


def _stale(write: Write, before: Stored) -> bool:
    given, guard = write.updated_at, before.guard
    if given is None or guard is None:
        return False
    return given < guard or (given == guard and before.cancelled and write.content is not None)


def _same(content: Content, stored: Content) -> bool:
    """Return whether an upsert changes nothing. Times that are not set are ignored."""
    if content.created_at is None:
        content = replace(content, created_at=stored.created_at)
    if content.updated_at is None:
        content = replace(content, updated_at=stored.updated_at)
    return content == stored


def _overlap(other: Stored, content: Content) -> bool:
    taken = other.content
    return (
        taken.resource == content.resource
        and taken.start < content.end
        and content.start < taken.end
    )
