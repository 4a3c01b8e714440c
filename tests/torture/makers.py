"""Who made the changes of a history that no longer says so, because a redaction has erased it."""

from collections.abc import Iterable, Mapping, Sequence

from tests.torture.erasures import CHANGES, Erasures, results
from tests.torture.record import FAILURE, NOTHING, UNKNOWN, Call, Json
from tests.torture.shown import MICROSECONDS, SLACK, microseconds

# Answers whose revision does not tell when they were read.
_LATE = frozenset({"watch", "delivery", "operation", "operations"})


class Makers:
    """Who made each change. The history names the call, unless a redaction has erased that.

    Then somebody may have read the entry before, or the call's own answer tells its revision. If
    nobody knows, it is one of the calls whose answers are unknown.
    """

    def __init__(self, calls: Mapping[int, Call], witnesses: "Witnesses") -> None:
        self._calls = calls
        self._witnesses = witnesses
        self._claims: dict[int, list[Call]] = {}
        self._lost: dict[str, list[Call]] = {}
        ended = set()
        for call in calls.values():
            if call.request.kind == "operation":
                maker = calls[call.request.asks["of"]]
                if call.answer.get("done"):
                    ended.add(maker.number)
                self._claim(maker, call.answer)
            for _, answer in results(call):
                self._claim(call, answer)
        for call in calls.values():
            for item, answer in results(call):
                if UNKNOWN in answer or ("operation" in answer and call.number not in ended):
                    self._lost.setdefault(item.write.id, []).append(call)

    def _claim(self, maker: Call, answer: Json) -> None:
        if answer.get("outcome") in CHANGES:
            claims = self._claims.setdefault(int(answer["appointment"]["revision"]), [])
            if maker not in claims:
                claims.append(maker)

    def of(self, entry: Json) -> list[tuple[Call, list[int]]] | str:
        """Return the calls that may have made a change, each with those of its items."""
        revision, id = int(entry["revision"]), entry["appointment"]["id"]
        actor = entry["actor"] or self._witnesses.actors.get(revision, "")
        if actor:
            call = self._calls.get(int(actor)) if actor.isdecimal() else None
            if call is None:
                return f"nobody made it (actor {actor!r})"
            candidates = [call]
        else:
            candidates = self._without_actor(revision, id)
            if not candidates:
                return f"nobody made it (actor {actor!r})"
        key = entry["idempotencyKey"]
        found = []
        problem = ""
        for call in candidates:
            unchanged = call.answer.get("outcome") in ("UNCHANGED", "STALE")
            if unchanged or "code" in call.answer or call.answer.keys() & {NOTHING, FAILURE}:
                problem = f"call {call.number} was answered with {dict(call.answer)}"
                continue
            wanted = [
                index
                for index, item in enumerate(call.request.items)
                if item.write.id == id and (not entry["actor"] or (item.write.key or "") == key)
            ]
            if wanted:
                found.append((call, [0] if call.request.asks.get("atomic") else wanted))
            else:
                problem = f"call {call.number} wants nothing like it"
        return found or problem

    def _without_actor(self, revision: int, id: str) -> list[Call]:
        """Return the calls that claim a revision, or else those of which nobody knows.

        A call with an idempotency key that claims it may have got the result of an earlier one.
        """
        claims, lost = self._claims.get(revision, []), self._lost.get(id, [])
        if not claims:
            return lost
        keys = {item.write.key for call in claims for item in call.request.items} - {None}
        same = [
            call
            for call in lost
            if call not in claims and any(item.write.key in keys for item in call.request.items)
        ]
        return sorted([*claims, *same], key=lambda call: call.begin)


class Witnesses:
    """What was read of changes before a redaction erased it."""

    def __init__(
        self, calls: Iterable[Call], entries: Sequence[Json], erasures: Erasures, started: float
    ) -> None:
        # By revision.
        self.actors: dict[int, str] = {}
        self.texts: dict[int, tuple[str, Json]] = {}
        self._entries = entries
        self._erasures = erasures
        self._started = started
        for call in calls:
            for entry in call.answer.get("entries", ()):
                self._learn(entry["appointment"], call)
                made = int(entry["revision"])
                if entry["actor"]:
                    self.actors[made] = entry["actor"]
                elif self._is_early(entry["appointment"], call):
                    self.actors.setdefault(made, "")
            for shown in call.answer.get("appointments", ()):
                self._learn(shown, call)
            for item, answer in results(call):
                if "appointment" in answer:
                    self._learn(answer["appointment"], call)
                if item.write.kind == "REDACT" and answer.get("outcome") == "UNCHANGED":
                    self._learn_nothing(answer["appointment"])
            if call.request.kind in ("get", "operation") and "appointment" in call.answer:
                self._learn(call.answer["appointment"], call)

    def _learn(self, shown: Json, call: Call) -> None:
        if self._is_early(shown, call):
            self.texts[int(shown["revision"])] = shown["title"], shown["attributes"]

    def _learn_nothing(self, shown: Json) -> None:
        """Learn from a redaction that found nothing to erase."""
        latest = int(shown["revision"])
        for made in range(latest, 0, -1):
            entry = self._entries[made - 1] if made <= len(self._entries) else None
            if entry is not None and entry["appointment"]["id"] == shown["id"]:
                if entry["change"] == "REDACTED":
                    break
                self.actors.setdefault(made, "")

    def _is_early(self, shown: Json, call: Call) -> bool:
        """Return whether a change was read before it was redacted, by revisions or by times."""
        made = int(shown["revision"])
        erased = self._erasures.next(shown["id"], made)
        if erased is None:
            return True
        if call.revision is not None and call.request.kind not in _LATE:
            return call.revision < erased
        recorded = microseconds(self._entries[erased - 1]["recordedAt"]) / MICROSECONDS
        return self._started + call.end < recorded - SLACK
