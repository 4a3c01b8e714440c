"""The history of an organization, replayed: each change must be what the model does.

The history names for every change the call that made it. So each change is compared with what
that call's write does in the state before it, and a call that made a change twice is seen. A write
that records the expiry of holds does so in the same transaction, right before its own change.

What a redaction has erased of the history is restored from the calls. So the entries that were read
before can be compared, and those that were read later must not have it.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.torture.erasures import Erasures, erased
from tests.torture.makers import Makers, Witnesses
from tests.torture.record import Call, Item, Json
from tests.torture.shown import differences, microseconds, stored_of
from tests.writes.model import Model
from tests.writes.values import Answer, Change, Stored, Write

DAY = 24 * 3600 * 1_000_000

Complain = Callable[[str], None]
# The states that may be the one before these writes of a call.
Variants = Callable[[dict[str, Stored], Sequence[Item], Call], Iterable[dict[str, Stored]]]


class Past:
    """The states of an organization by their revisions."""

    def __init__(
        self,
        entries: Sequence[Json],
        calls: Mapping[int, Call],
        variants: Variants,
        complain: Complain,
        *,
        started: float,
    ) -> None:
        # As they were recorded, before anything was erased.
        self.entries = list(entries)
        self.erasures = Erasures(entries)
        # For each revision from 0: the time of the state, in microseconds since 1970.
        self.clocks = [0] + [microseconds(entry["recordedAt"]) for entry in entries]
        # For each revision from 1: the call that made the change, None for an expiry alone.
        self.causes: list[tuple[Call, int] | None] = []
        # The first result of each idempotency key, with its revision; None if it is not kept.
        self.keys: dict[str, tuple[int, Write, Answer | None]] = {}
        # The results of atomic batches that changed something, with their time, by their calls.
        self.batches: dict[int, tuple[Sequence[Answer], int]] = {}
        self._versions: dict[str, tuple[list[int], list[Stored]]] = {}
        # For each id, the revisions with something that a redaction erases.
        self._texts: dict[str, list[int]] = {}
        self._witnesses = Witnesses(calls.values(), entries, self.erasures, started)
        self._makers = Makers(calls, self._witnesses)
        self._redacting: dict[str, float] = {}
        for call in calls.values():
            for item in call.request.items:
                if item.write.kind == "REDACT":
                    latest = self._redacting.get(item.write.id, 0.0)
                    self._redacting[item.write.id] = max(latest, call.over)
        self._variants = variants
        self._complain = complain
        # The writes that made a change, as number and index.
        self.effective: set[tuple[int, int]] = set()
        self._check_order()
        while len(self.causes) < len(entries):
            self._replay()

    @property
    def latest(self) -> int:
        return len(self.entries)

    def at(self, revision: int) -> dict[str, Stored]:
        """Return the state after a revision."""
        state = {}
        for id, (revisions, versions) in self._versions.items():
            place = bisect_right(revisions, revision)
            if place:
                state[id] = versions[place - 1]
        return state

    def model(
        self, revision: int, tick: int, state: dict[str, Stored], writes: Iterable[Write] = ()
    ) -> Model:
        """Return the model in the state after a revision, at a time, as these writes need it."""
        known: dict[str, tuple[Write, Answer] | None] = {}
        erasable = set()
        for write in writes:
            if write.key is not None and (first := self.keys.get(write.key)):
                made, earlier, answer = first
                if made <= revision:
                    gone = answer is None or self.is_key_erased(write.key, revision)
                    known[write.key] = None if gone or answer is None else (earlier, answer)
            if write.kind == "REDACT" and self._has_text(write.id, revision):
                erasable.add(write.id)
        return Model(
            stored=dict(state),
            keys=known,
            tick=tick,
            first_revision=revision,
            latest_hold=tick + DAY - 1,
            erasable=erasable,
        )

    def is_key_erased(self, key: str, revision: int) -> bool:
        """Return whether the first change of a key was redacted by a revision."""
        made, write, _ = self.keys[key]
        return write.kind != "REDACT" and self.erasures.between(write.id, made, revision)

    def entry(self, revision: int, seen: int) -> Json:
        """Return an entry as it was after a later revision."""
        entry: Json = self.entries[revision - 1]
        is_erased = self.erasures.between(entry["appointment"]["id"], revision, seen)
        return erased(entry) if is_erased else entry

    def shown(self, stored: Stored, seen: int) -> Json:
        """Return an appointment as the history has it, as it was after a later revision."""
        found: Json = self.entry(stored.revision, seen)["appointment"]
        return found

    def selected(
        self,
        revisions: Iterable[int],
        *,
        seen: int,
        resource: str | None,
        changes: Collection[str],
    ) -> list[Json]:
        """Return the changes that a filter selects, with those by which a resource is left.

        A redaction belongs to every kind, and to all resources that the appointment ever had.
        """
        found = []
        for revision in revisions:
            entry = self.entry(revision, seen)
            redacted = entry["change"] == "REDACTED"
            if (resource is None or self._concerns(resource, entry, ever=redacted)) and (
                not changes or redacted or entry["change"] in changes
            ):
                found.append(entry)
        return found

    def history(self, id: str, seen: int) -> list[Json]:
        """Return the changes of an appointment, as they were after a revision."""
        revisions, _ = self._versions.get(id, ([], []))
        return [self.entry(made, seen) for made in revisions[: bisect_right(revisions, seen)]]

    def forms(self, call: Call, index: int, revision: int) -> Iterator[Write]:
        """Yield a write as it may be applied after a revision.

        One that was accepted before a redaction is applied without what that erases.
        """
        write = call.request.items[index].write
        yield write
        if call.request.accepted and write.kind != "REDACT":
            redacted = self.erasures.between(write.id, 0, revision)
            if redacted and self._redacting.get(write.id, 0.0) >= call.begin:
                key = write.key if write.key in self.keys else None
                yield replace(write.redacted(), key=key)

    def _concerns(self, resource: str, entry: Json, *, ever: bool) -> bool:
        shown = entry["appointment"]
        if resource in _resources(shown):
            return True
        revisions, _ = self._versions.get(shown["id"], ([], []))
        before = revisions[: bisect_right(revisions, int(entry["revision"]) - 1)]
        return any(
            resource in _resources(self.entries[revision - 1]["appointment"])
            for revision in (before if ever else before[-1:])
        )

    def _has_text(self, id: str, revision: int) -> bool:
        """Return whether a redaction would erase something of the history up to a revision."""
        texts = self._texts.get(id, [])
        place = bisect_right(texts, revision)
        return place > 0 and not self.erasures.between(id, texts[place - 1], revision)

    def _check_order(self) -> None:
        for number, entry in enumerate(self.entries, 1):
            if int(entry["revision"]) != number:
                self._complain(f"the history has revision {entry['revision']} as number {number}")
                break
            if int(entry["appointment"]["revision"]) != number:
                self._complain(f"revision {number} shows {entry['appointment']['revision']}")
            if self.clocks[number] < self.clocks[number - 1]:
                self._complain(f"the time of revision {number} is before that of the one before")

    def _replay(self) -> None:
        """Replay the next change, or all changes of an atomic batch."""
        revision = len(self.causes)
        entry = self.entries[revision]
        if entry["change"] == "EXPIRED":
            self._expire(entry)
            return
        makers = self._makers.of(entry)
        if isinstance(makers, str):
            self._complain(f"revision {revision + 1} ({entry['change']}): {makers}")
            self._adopt(stored_of(entry["appointment"]), None)
            return
        problems: list[str] = []
        for call, indexes in makers:
            unused = [index for index in indexes if (call.number, index) not in self.effective]
            if not unused:
                problems.append(f"call {call.number} makes it a second time")
            for index in unused:
                if not (problem := self._explain_by(call, index)):
                    self.effective.add((call.number, index))
                    return
                problems.append(problem)
        self._complain(
            f"revision {revision + 1} ({entry['change']} of {entry['appointment']['id']!r}) is not"
            f" what call {makers[0][0].number} does there: {'; or '.join(dict.fromkeys(problems))}"
        )
        self._adopt(stored_of(entry["appointment"]), (makers[0][0], makers[0][1][0]))

    def _explain_by(self, call: Call, index: int) -> str:
        """Replay the next changes as what a write of a call does, or return how they differ."""
        revision = len(self.causes)
        problems = []
        for earlier in range(self.expired_before(revision) + 1):
            fitting = []
            for form in self.forms(call, index, revision):
                history, problem = self._explain(revision - earlier, call, index, form)
                if problem:
                    problems.append(problem)
                else:
                    fitting.append((form, history[earlier:]))
            if fitting:
                form, history = max(fitting, key=lambda fit: self._is_witnessed(fit[1][-1]))
                actor = str(call.number) if form is call.request.items[index].write else ""
                for change in history:
                    self._adopt(change.stored, (call, index), change, actor)
                    self._remember(change, call, index, form)
                return ""
        return "; or ".join(dict.fromkeys(problems))

    def _is_witnessed(self, change: Change) -> bool:
        """Return whether somebody has read a change with its text before that was erased."""
        content = change.stored.content
        text = content.title, content.attributes
        return self._witnesses.texts.get(change.stored.revision) == text

    def expired_before(self, revision: int) -> int:
        """Return the number of expiries that were recorded right before."""
        count = 0
        while count < revision and self.entries[revision - count - 1]["change"] == "EXPIRED":
            count += 1
        return count

    def _explain(
        self, revision: int, call: Call, index: int, form: Write
    ) -> tuple[Sequence[Change], str]:
        """Return what a write changes after a revision, and how the history differs."""
        found = "it changes nothing"
        # The changes of a transaction have one time, that of its expiries included.
        tick = self.clocks[min(len(self.causes), self.latest - 1) + 1]
        items: Sequence[Item] = call.request.items
        atomic = bool(call.request.asks.get("atomic"))
        items = items if atomic else [items[index]]
        writes = [item.write for item in items] if atomic else [form]
        actor = str(call.number) if atomic or form is items[0].write else ""
        for state in self._variants(self.at(revision), items, call):
            model = self.model(revision, tick, state, writes)
            answers: Any
            if atomic:
                answers = model.apply_atomically(
                    writes, validate_only=call.request.asks["validate_only"]
                )
            else:
                answers = [model.apply(form)]
            if not model.history:
                results = answers.values() if isinstance(answers, dict) else answers
                found = f"the model says {', '.join(answer.result for answer in results)}"
                continue
            found = self._compare(revision, model.history, actor)
            if not found:
                if atomic:
                    self.batches[call.number] = answers, tick
                # With what a redaction notes of the times of callers.
                history = [
                    replace(change, stored=model.stored[change.stored.id])
                    if change.change == "REDACTED"
                    else change
                    for change in model.history
                ]
                return history, ""
        return (), found

    def _compare(self, revision: int, history: Sequence[Change], actor: str) -> str:
        """Compare changes with the history, which has lost what redactions have erased since."""
        entries = self.entries[revision : revision + len(history)]
        if len(entries) < len(history):
            return f"{len(history)} changes belong together, the history ends before"
        problems = (
            self._differs(change, entry, actor)
            for change, entry in zip(history, entries, strict=True)
        )
        return next((problem for problem in problems if problem), "")

    def _differs(self, change: Change, entry: Json, actor: str) -> str:
        made = int(entry["revision"])
        if change.change != entry["change"]:
            return f"revision {made} is {entry['change']}, not {change.change}"
        if change.change in ("EXPIRED", "REDACTED"):
            actor = ""
        known = self._witnesses.actors.get(made, actor)
        wanted = actor
        if change.change == "REDACTED" or self._is_erased(entry):
            wanted, change = "", change.redacted()
        if (entry["actor"], known) != (wanted, actor):
            return f"revision {made} has the actor {entry['actor']!r}, or had {known!r}"
        if (change.key or "") != entry["idempotencyKey"]:
            return f"revision {made} has another idempotency key"
        wrong = differences(change.stored, entry["appointment"]) + self._times_wrong(entry)
        return f"revision {made}: {', '.join(wrong)}" if wrong else ""

    def _is_erased(self, entry: Json) -> bool:
        id, made = entry["appointment"]["id"], int(entry["revision"])
        return self.erasures.between(id, made, self.latest)

    def _times_wrong(self, entry: Json) -> list[str]:
        """Check the times of an appointment that are those of changes or stay as they were."""
        shown = entry["appointment"]
        if entry["change"] in ("CREATED", "UPDATED"):
            return []
        before = self._latest_shown(shown["id"], int(entry["revision"]))
        return [
            f"{name} is {shown[name]}, not {before[name]}"
            for name in ("createdAt", "updatedAt")
            if before is not None and shown[name] != before[name]
        ]

    def _latest_shown(self, id: str, before: int) -> Json | None:
        revisions, _ = self._versions.get(id, ([], []))
        place = bisect_right(revisions, before - 1)
        found: Json | None = (
            self.entries[revisions[place - 1] - 1]["appointment"] if place else None
        )
        return found

    def _expire(self, entry: Json) -> None:
        """Replay the expiry of a hold, whoever recorded it."""
        revision = len(self.causes)
        model = self.model(revision, self.clocks[revision + 1], self.at(revision))
        model.expire([entry["appointment"]["id"]])
        if not model.history:
            self._complain(f"revision {revision + 1} ends a hold that has not expired")
            self._adopt(stored_of(entry["appointment"]), None)
            return
        if wrong := self._compare(revision, model.history, ""):
            self._complain(f"revision {revision + 1} (EXPIRED): {wrong}")
        self._adopt(model.history[0].stored, None, model.history[0])

    def _adopt(
        self,
        stored: Stored,
        cause: tuple[Call, int] | None,
        change: Change | None = None,
        actor: str = "",
    ) -> None:
        """Take the next entry of the history over, with what a redaction has erased since."""
        revisions, versions = self._versions.setdefault(stored.id, ([], []))
        entry = self.entries[len(self.causes)]
        self.causes.append(cause)
        revisions.append(len(self.causes))
        versions.append(stored)
        if change is not None and change.change != "REDACTED":
            if self._is_erased(entry):
                content = change.stored.content
                text = {"title": content.title, "attributes": content.attributes}
                self.entries[len(self.causes) - 1] = {
                    **entry,
                    "actor": "" if change.change == "EXPIRED" else actor,
                    "idempotencyKey": change.key or "",
                    "appointment": {**entry["appointment"], **text},
                }
            entry = self.entries[len(self.causes) - 1]
            if entry != erased(entry):
                self._texts.setdefault(stored.id, []).append(len(self.causes))

    def _remember(self, change: Change, call: Call, index: int, form: Write) -> None:
        """Remember the first result of a key. That of a write without its text is not kept."""
        original = call.request.items[index].write
        if form is not original and original.key is not None:
            self.keys.setdefault(original.key, (len(self.causes), original, None))
        elif change.key is not None:
            write = next(item.write for item in call.request.items if item.write.key == change.key)
            answer = Answer(result=change.change, stored=change.stored)
            self.keys[change.key] = len(self.causes), write, answer


def _resources(shown: Json) -> list[str]:
    return [shown["resourceId"], *shown["additionalResourceIds"]]
