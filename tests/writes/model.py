"""The contract as a simple in-memory model of one organization."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.writes.values import (
    ANY_ETAG,
    CONTENT_FIELDS,
    MAX_HOLD,
    SEARCHED,
    Answer,
    Change,
    Conflict,
    Content,
    Stored,
    Write,
)


@dataclass(slots=True)
class Model:
    stored: dict[str, Stored] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    # The first result of each idempotency key, None for one that a redaction has erased.
    keys: dict[str, tuple[Write, Answer] | None] = field(default_factory=dict)
    tick: int = 0
    # The revision of the state that the model begins with.
    first_revision: int = 0
    latest_hold: int = MAX_HOLD
    # The ids whose changes before that have something that a redaction erases.
    erasable: set[str] = field(default_factory=set)
    # Overlaps are judged later, on the final state of an atomic batch.
    atomic: bool = False

    @property
    def revision(self) -> int:
        return self.first_revision + len(self.history)

    @property
    def due(self) -> list[Stored]:
        """Return the holds that have expired without a change that says so."""
        return [stored for stored in self.stored.values() if stored.at(self.tick) is not stored]

    # Writes

    def apply(self, write: Write) -> Answer:
        """Apply a write. The idempotency key comes first: a repetition cannot be too late."""
        if write.key is not None and write.key in self.keys:
            known = self.keys[write.key]
            if known is not None and write.identity == known[0].identity:
                return known[1]
            return Answer(result="IDEMPOTENCY_KEY_REUSED")
        answer = self._decide(write)
        if write.key is not None and not answer.refused and not write.validate_only:
            self.keys[write.key] = write, answer
        return answer

    def apply_atomically(
        self, writes: Sequence[Write], *, validate_only: bool
    ) -> dict[int, Answer] | list[Answer]:
        """Apply upserts of different ids together, judged on the final state.

        Return the result of each, or the refused ones by their index; nothing is changed then.
        Holds that have expired are recorded first if they are in the way of any item; those of
        the batch by its own writes, or at the end if these are stale.
        """
        final = replace(
            self,
            stored=dict(self.stored),
            history=list(self.history),
            keys=dict(self.keys),
            atomic=True,
        )
        ids = {write.id: index for index, write in enumerate(writes)}
        wanted = [write.content for write in writes if write.content]
        final.expire(
            id
            for id, other in self.stored.items()
            if id not in ids and any(other.content.shared_with(content) for content in wanted)
        )
        answers = [final.apply(write) for write in writes]
        final.expire(ids)
        refused = {index: answer for index, answer in enumerate(answers) if answer.refused}
        # What a refused item would have been is not known, so it is in nobody's way.
        apart = {writes[index].id for index in refused}
        for index, answer in enumerate(answers):
            stored = answer.stored
            if stored is None or stored.revision <= self.revision:
                continue  # Nothing was changed, so it is in its place rightly.
            conflicts = [
                replace(conflict, index=ids.get(conflict.id))
                for conflict in final.conflicts(stored.id, stored.content)
                if conflict.id not in apart
            ]
            if conflicts:
                refused[index] = Answer(result="TIME_RANGE_CONFLICT", conflicts=tuple(conflicts))
        if refused:
            return dict(sorted(refused.items()))
        if validate_only:
            return [_without_revision(answer, after=self.revision) for answer in answers]
        self.stored, self.history, self.keys = final.stored, final.history, final.keys
        return answers

    def expire(self, ids: Iterable[str]) -> None:
        """Record the holds among these that have expired, each as a change of its own."""
        for id in sorted(ids):
            stored = self.stored.get(id)
            if stored is not None and stored in self.due:
                after = replace(
                    stored, state="EXPIRED", version=stored.version + 1, revision=self.revision + 1
                )
                self.stored[id] = after
                self.history.append(
                    Change(change="EXPIRED", stored=after, key=None, tick=self.tick)
                )

    def _decide(self, write: Write) -> Answer:  # noqa: PLR0911, PLR0912  # as many as the contract has
        stored = self.stored.get(write.id)
        before = stored.at(self.tick) if stored else None
        content = write.content
        # An update that creates takes all fields of the message.
        creates = before is None and (write.kind == "UPSERT" or write.allow_missing)
        hold_until = content.hold_until if content and creates else write.named("hold_until")
        if hold_until is not None and not self.tick <= hold_until <= self.latest_hold:
            return Answer(result="INVALID_FIELD")
        if before is None and not creates:
            return Answer(result="APPOINTMENT_NOT_FOUND")
        if write.expected is not None and (
            before is None or write.expected not in (ANY_ETAG, before.etag)
        ):
            return Answer(result="ETAG_MISMATCH")
        if write.create_only and before is not None:
            return Answer(result="APPOINTMENT_EXISTS")
        if before is not None:
            if _stale(write, before):
                return Answer(result="STALE", stored=before)
            if write.kind == "CANCEL":
                if before.state == "CANCELLED":
                    return Answer(result="UNCHANGED", stored=self._cancel_again(write, before))
                return self._change(write, "CANCELLED", "CANCELLED", before.content)
            if write.kind == "REDACT":
                return self._redact(write, before)
            if write.kind in ("UPDATE", "CONFIRM"):
                if before.state == "CANCELLED":
                    return Answer(result="APPOINTMENT_CANCELLED")
                if before.state == "EXPIRED":
                    return Answer(result="HOLD_EXPIRED")
            if write.kind == "CONFIRM":
                if before.state == "ACTIVE":
                    return Answer(result="UNCHANGED", stored=before)
                firm = replace(before.content, hold_until=None)
                return self._change(write, "CONFIRMED", "ACTIVE", firm)
        assert content is not None
        content = _merged(write, content, before)
        if not content.valid:
            return Answer(result="INVALID_FIELD")
        if before is not None:
            if before.state in ("ACTIVE", "HELD") and _same(content, before.content):
                return Answer(result="UNCHANGED", stored=before)
            if before.state == "ACTIVE" and content.hold_until is not None:
                return Answer(result="APPOINTMENT_FIRM")
            if content.created_at is None:
                content = replace(content, created_at=before.content.created_at)
        if not self.atomic and (conflicts := self.conflicts(write.id, content)):
            return Answer(
                result="TIME_RANGE_CONFLICT",
                conflicts=conflicts,
                alternatives=self._alternatives(write.id, content, write.suggest),
            )
        state = "ACTIVE" if content.hold_until is None else "HELD"
        return self._change(write, "UPDATED" if before else "CREATED", state, content)

    def conflicts(self, id: str, content: Content) -> tuple[Conflict, ...]:
        """Return what occupies resources of an appointment in its range, by start and id."""
        occupying = [
            other
            for other in self._by_start(self.stored.values())
            if other.id != id and other.at(self.tick).state in ("ACTIVE", "HELD")
        ]
        return tuple(
            Conflict(
                id=other.id,
                start=other.content.start,
                end=other.content.end,
                version=other.version,
                resource_ids=shared,
            )
            for other in occupying
            if (shared := content.shared_with(other.content))
        )

    def _alternatives(self, id: str, wanted: Content, most: int) -> tuple[tuple[int, int], ...]:
        """Return the next free ranges, found minute by minute."""
        found: list[tuple[int, int]] = []
        start = wanted.start
        length = wanted.end - wanted.start
        while len(found) < most and start <= wanted.start + SEARCHED:
            if self.conflicts(id, replace(wanted, start=start, end=start + length)):
                start += 1
            else:
                found.append((start, start + length))
                start += length
        return tuple(found)

    def _cancel_again(self, write: Write, before: Stored) -> Stored:
        """Store the time of the later cancel. No visible field changes."""
        if write.cancel_updated_at is None or write.validate_only:
            return before
        after = replace(before, cancel_updated_at=write.cancel_updated_at)
        self.stored[write.id] = after
        return after

    def _redact(self, write: Write, before: Stored) -> Answer:
        is_changed = write.id in self.erasable or any(
            entry.is_to_redact for entry in self.history if entry.stored.id == write.id
        )
        if not is_changed:
            self._erase(write)
            return Answer(result="UNCHANGED", stored=before)
        answer = self._change(write, "REDACTED", before.state, before.content.redacted())
        self._erase(write)
        return answer

    def _erase(self, write: Write) -> None:
        """Empty the history of an appointment, and forget its keys but those of redactions."""
        if write.validate_only:
            return
        self.erasable.discard(write.id)
        stored = self.stored[write.id]
        times = (stored.redacted_updated_at, stored.cancel_updated_at, stored.content.updated_at)
        given = [time for time in times if time is not None]
        latest = max(given, default=None)
        self.stored[write.id] = replace(stored, redacted=True, redacted_updated_at=latest)
        self.history = [
            entry.redacted() if entry.stored.id == write.id else entry for entry in self.history
        ]
        for key, known in self.keys.items():
            if known is not None and known[0].id == write.id and known[1].result != "REDACTED":
                self.keys[key] = None

    def _change(self, write: Write, change: str, state: str, content: Content) -> Answer:
        """Record the holds that have expired and are in the way, then the change itself."""
        before = self.stored.get(write.id)
        due = {
            other.id
            for other in self.due
            if other.id == write.id or self._in_the_way(other, state, content)
        }
        after = Stored(
            id=write.id,
            content=content,
            state=state,
            version=(before.version if before else 0) + (write.id in due) + 1,
            # The result of `validate_only` has no revision.
            revision=0 if write.validate_only else self.revision + len(due) + 1,
            cancel_updated_at=before.cancel_updated_at
            if before and write.kind == "REDACT"
            else write.cancel_updated_at,
            redacted_updated_at=before.redacted_updated_at if before else None,
            redacted=before is not None and before.redacted,
        )
        if not write.validate_only:
            self.expire(due)
            self.stored[write.id] = after
            self.history.append(Change(change=change, stored=after, key=write.key, tick=self.tick))
        return Answer(result=change, stored=after)

    def _in_the_way(self, other: Stored, state: str, content: Content) -> bool:
        return (
            not self.atomic
            and state in ("ACTIVE", "HELD")
            and bool(content.shared_with(other.content))
        )

    # Reads

    def listed(
        self,
        *,
        as_of: int | None = None,
        as_of_tick: int | None = None,
        resource: str | None = None,
        start: int | None = None,
        end: int | None = None,
        cancelled: bool = True,
    ) -> list[Stored]:
        """Return a list, of now, as of a revision, or as of the beginning of a tick."""
        tick = self.tick
        state = dict(self.stored)
        if as_of is not None or as_of_tick is not None:
            entries = [
                entry
                for entry in self.history[:as_of]
                if as_of_tick is None or entry.tick < as_of_tick
            ]
            state = {entry.stored.id: entry.stored for entry in entries}
            tick = as_of_tick if as_of_tick is not None else entries[-1].tick if entries else 0
        found = [
            item
            for item in (stored.at(tick) for stored in state.values())
            if (cancelled or item.state in ("ACTIVE", "HELD"))
            and (resource is None or resource in item.content.resources)
            and (start is None or item.content.end > start)
            and (
                end is None
                or item.content.start < end
                or (start == end and item.content.start == end)
            )
        ]
        return self._by_start(found)

    @staticmethod
    def _by_start(items: Any) -> list[Stored]:
        return sorted(items, key=lambda item: (item.content.start, item.id))


def _stale(write: Write, before: Stored) -> bool:
    given = write.cancel_updated_at if write.kind == "CANCEL" else write.named("updated_at")
    guard = before.guard
    redacted = before.redacted_updated_at
    if given is None:
        return False
    if redacted is not None and given <= redacted and write.kind != "CANCEL":
        return True
    return guard is not None and (
        given < guard or (given == guard and before.state == "CANCELLED" and write.kind != "CANCEL")
    )


def _merged(write: Write, content: Content, before: Stored | None) -> Content:
    """Return the content that a write wants, with what an update leaves as it is stored."""
    if write.kind == "UPDATE" and before is not None:
        kept = {n: getattr(before.content, n) for n in CONTENT_FIELDS if n not in write.fields}
        content = replace(content, **kept)
    if write.attributes_patch is not None:
        content = replace(content, attributes=_patched(content.attributes, write.attributes_patch))
    return content


def _patched(target: object, patch: object) -> Any:
    """Merge by the rules of RFC 7396."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _patched(merged.get(name), value)
    return merged


def _same(content: Content, stored: Content) -> bool:
    """Return whether an upsert changes nothing. Times that are not set are ignored."""
    if content.created_at is None:
        content = replace(content, created_at=stored.created_at)
    if content.updated_at is None:
        content = replace(content, updated_at=stored.updated_at)
    return content == stored


def _without_revision(answer: Answer, *, after: int) -> Answer:
    """Return the result of a write that was not stored, if it would have changed something."""
    if answer.stored is None or answer.stored.revision <= after:
        return answer
    return replace(answer, stored=replace(answer.stored, revision=0))
