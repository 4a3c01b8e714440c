"""What answers do not tell of the state: times that callers gave, stored without a change."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tests.torture.record import Call, Item
from tests.writes.values import Stored, Write


class Variants:
    """The states that may be that before a write, where no revision tells.

    A cancel of what is cancelled already stores its later `updatedAt`, and no change shows that.
    Nor does a change show up to which time a redaction, or another one that found nothing to erase,
    makes later writes stale.
    """

    def __init__(self, calls: Iterable[Call]) -> None:
        self._notes: dict[str, list[tuple[Call, int]]] = {}
        # The times that writes gave, and the redactions that may have found nothing.
        self._given: dict[str, list[tuple[Call, int]]] = {}
        self._redactions: dict[str, list[Call]] = {}
        for call in calls:
            for item in call.request.items:
                write = item.write
                if write.validate_only or "code" in call.answer:
                    continue
                unchanged = call.answer.get("outcome", "UNCHANGED") == "UNCHANGED"
                given = write.cancel_updated_at
                if given is not None and unchanged:
                    self._notes.setdefault(write.id, []).append((call, given))
                given = write.named("updated_at") if given is None else given
                if given is not None:
                    self._given.setdefault(write.id, []).append((call, given))
                if write.kind == "REDACT" and unchanged:
                    self._redactions.setdefault(write.id, []).append(call)

    def of(
        self, state: dict[str, Stored], items: Sequence[Item], call: Call
    ) -> Iterable[dict[str, Stored]]:
        """Return the states with each time that the written appointments may have."""
        states = [state]
        for write in {item.write.id: item.write for item in items}.values():
            before = state.get(write.id)
            if before is None:
                continue
            versions = [before]
            if before.state == "CANCELLED" and write.id in self._notes:
                versions = self._versions(before, call)
            if self._may_be_too_late(write, before, call):
                given = write.named("updated_at")
                versions += [replace(one, redacted_updated_at=given) for one in versions]
            if len(versions) > 1 or versions[0] is not before:
                states = [{**each, write.id: one} for each in states for one in versions]
        return states

    def _versions(self, before: Stored, call: Call) -> list[Stored]:
        guard = before.guard if before.guard is not None else -1
        least, times = guard, {guard}
        for note, given in self._notes[before.id]:
            if note.begin > call.over or note is call:
                continue
            times.add(given)
            shown = note.answer.get("appointment")
            if shown and int(shown["revision"]) == before.revision and note.end < call.begin:
                least = max(least, given)
        return [
            before if time == guard else replace(before, cancel_updated_at=time)
            for time in sorted(times)
            if time >= least
        ]

    def _may_be_too_late(self, write: Write, before: Stored, call: Call) -> bool:
        """Return whether a redaction may have found a later time than the write's."""
        given = write.named("updated_at")
        if given is None or not before.redacted:
            return False
        noted = self._notes.get(write.id, [])
        if any(_before(self._redactions.get(write.id, []), call)):
            noted = self._given.get(write.id, [])
        return any(other.begin <= call.over and time >= given for other, time in noted)


def _before(others: Iterable[Call], call: Call) -> Iterator[bool]:
    for other in others:
        yield other is not call and other.begin <= call.over
