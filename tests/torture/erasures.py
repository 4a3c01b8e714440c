"""What redactions erase of a history."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from tests.torture.record import Call, Item, Json

CHANGES = frozenset({"CREATED", "UPDATED", "CONFIRMED", "CANCELLED", "REDACTED"})


class Erasures:
    """The redactions of a history."""

    def __init__(self, entries: Iterable[Json]) -> None:
        self._revisions: dict[str, list[int]] = {}
        for entry in entries:
            if entry["change"] == "REDACTED":
                id = entry["appointment"]["id"]
                self._revisions.setdefault(id, []).append(int(entry["revision"]))

    def of(self, id: str) -> Sequence[int]:
        """Return the revisions of the redactions of an appointment."""
        return self._revisions.get(id, ())

    def between(self, id: str, after: int, until: int) -> bool:
        """Return whether an appointment was redacted after a revision, and not after another."""
        revisions = self.of(id)
        place = bisect_right(revisions, after)
        return place < len(revisions) and revisions[place] <= until

    def next(self, id: str, after: int) -> int | None:
        """Return the revision of the first redaction of an appointment after a revision."""
        revisions = self.of(id)
        place = bisect_right(revisions, after)
        return revisions[place] if place < len(revisions) else None


def erased(entry: Json) -> Json:
    """Return what a redaction leaves of an entry."""
    key = entry["idempotencyKey"] if entry["change"] == "REDACTED" else ""
    shown = without_text(entry["appointment"])
    return {**entry, "actor": "", "idempotencyKey": key, "appointment": shown}


def without_text(shown: Json) -> Json:
    """Return what a redaction leaves of an appointment."""
    return {**shown, "title": "", "attributes": {}}


def results(call: Call) -> Iterator[tuple[Item, Json]]:
    """Yield the writes of a call with their answers."""
    answers = call.answer.get("results") or [call.answer] * len(call.request.items)
    yield from zip(call.request.items, answers, strict=True)
