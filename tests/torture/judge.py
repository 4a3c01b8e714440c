"""Judges answers: each must be what the model says of the state at the answer's revision."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.torture.erasures import CHANGES, without_text
from tests.torture.free_times import judge_free_times
from tests.torture.past import Past
from tests.torture.record import Call, Item, Json, Run
from tests.torture.shown import (
    MICROSECONDS,
    SLACK,
    conflicts_of,
    differences,
    event_of,
    minute_of,
)
from tests.torture.variants import Variants
from tests.writes.model import Model
from tests.writes.values import Answer, Stored

# How many conflicts an error names.
MAX_CONFLICTS = 20


class Judge:
    """Judges the answers of one organization. A verdict is empty if an answer is right."""

    def __init__(self, run: Run, past: Past, variants: Variants, etags: "Etags") -> None:
        self._run = run
        self._past = past
        self._variants = variants
        self._etags = etags
        # The list of each etag, by the parameters of the list.
        self._lists: dict[tuple[str, str], Json] = {}

    # Writes

    def write(
        self,
        call: Call,
        index: int,
        answer: Json,
        revisions: Sequence[int],
        *,
        end: float,
        seen: Sequence[int],
    ) -> str:
        """Judge the answer to a write that was decided by `end`, at one of these revisions.

        The answer is as it was read after one of the revisions `seen`.
        """
        item = call.request.items[index]
        outcome = answer.get("outcome")
        if outcome in CHANGES and not item.write.validate_only:
            return self._effect(call, index, answer, max(revisions), seen)
        verdict = "no revision is possible"
        for revision in sorted(revisions, reverse=True):
            for form in self._past.forms(call, index, revision):
                for tick in self._ticks(revision, call.begin, end, [item]):
                    for state in self._variants.of(self._past.at(revision), [item], call):
                        model = self._past.model(revision, tick, state, [form])
                        verdict = self._compare(model.apply(form), answer, tick, seen)
                        if not verdict:
                            return ""
        return verdict

    def atomic(self, call: Call, revision: int) -> str:
        """Judge an atomic batch that made no change, apart from expiries that it recorded."""
        writes = [item.write for item in call.request.items]
        verdict = ""
        for expired in range(self._past.expired_before(revision) + 1):
            before = revision - expired
            for tick in self._ticks(before, call.begin, call.end, call.request.items):
                for state in self._variants.of(self._past.at(before), call.request.items, call):
                    model = self._past.model(before, tick, state, writes)
                    answers = model.apply_atomically(
                        writes, validate_only=call.request.asks["validate_only"]
                    )
                    verdict = self._compare_atomic(answers, call.answer, tick, revision)
                    if model.revision != revision:
                        verdict = f"the model says revision {model.revision}"
                    if not verdict:
                        return ""
        return verdict

    def atomic_result(self, call: Call, index: int, answer: Json, revision: int) -> str:
        """Judge the result of an item of an atomic batch that changed something."""
        if answer.get("outcome") in CHANGES:
            return self._effect(call, index, answer, revision, [revision])
        batch = self._past.batches.get(call.number)
        if batch is None:
            return "the history has nothing of its batch"
        answers, tick = batch
        return self._compare(answers[index], answer, tick, [revision])

    def _effect(
        self, call: Call, index: int, answer: Json, revision: int, seen: Sequence[int]
    ) -> str:
        """Judge a write that was answered with a change: the history must have it."""
        shown = answer["appointment"]
        changed = int(shown["revision"])
        if not 1 <= changed <= self._past.latest:
            return f"revision {changed} is lost: the history ends at {self._past.latest}"
        entry = self._past.entries[changed - 1]
        known = [self._past.entry(changed, at)["appointment"] for at in seen]
        if shown not in known or entry["change"] != answer["outcome"]:
            return f"the history has at revision {changed}: {entry['change']} {known[-1]}"
        write = call.request.items[index].write
        if (cause := self._past.causes[changed - 1]) and cause[0].number != call.number:
            first = self._past.keys.get(write.key or "")
            if first is None or first[0] != changed or first[1].identity != write.identity:
                return f"revision {changed} was made by call {cause[0].number}"
            if self._past.is_key_erased(write.key or "", revision):
                return f"the result of the key {write.key!r} has been erased"
        elif len(call.request.items) == 1 and changed != revision:
            return f"it was made at revision {changed}, and says {revision}"
        return "" if changed <= revision else f"revision {changed} is beyond {revision}"

    def _compare(self, decided: Answer, answer: Json, tick: int, seen: Sequence[int]) -> str:
        result = answer.get("outcome") or answer["code"]
        if decided.result != result:
            return f"the model says {decided.result}"
        if decided.refused:
            if not _same_conflicts(decided, answer):
                return f"the model has the conflicts {decided.conflicts}"
            offered = tuple(
                (minute_of(free["start"]), minute_of(free["end"]))
                for free in answer.get("alternatives", ())
            )
            if offered != decided.alternatives:
                return f"the model has the alternatives {decided.alternatives}"
            return ""
        assert decided.stored is not None
        shown = answer["appointment"]
        if int(shown["revision"]) == 0:
            return ", ".join(differences(decided.stored, shown))
        verdicts = [self._shown(decided.stored, shown, tick, at) for at in seen]
        return verdicts[-1] if all(verdicts) else ""

    def _compare_atomic(
        self,
        decided: Mapping[int, Answer] | Sequence[Answer],
        answer: Json,
        tick: int,
        revision: int,
    ) -> str:
        if isinstance(decided, Mapping):
            refused = {item["index"]: item for item in answer.get("items", ())}
            expected = {index: item.result for index, item in decided.items()}
            if {index: item["code"] for index, item in refused.items()} != expected:
                return f"the model refuses {expected}"
            for index, item in refused.items():
                if not _same_conflicts(decided[index], item):
                    return f"the model has for item {index} {decided[index].conflicts}"
            return ""
        if "results" not in answer:
            return "the model does not refuse it"
        verdicts = [
            self._compare(one, result, tick, [revision])
            if "outcome" in result
            else "it has no outcome"
            for one, result in zip(decided, answer["results"], strict=True)
        ]
        return next((verdict for verdict in verdicts if verdict), "")

    # Reads

    def read(self, call: Call) -> str:
        """Judge the answer to a read."""
        revision = call.revision
        if revision is None:
            return f"it has no revision: {dict(call.answer)}"
        if revision > self._past.latest:
            return f"revision {revision} is lost: the history ends at {self._past.latest}"
        kind, asks, answer = call.request.kind, call.request.asks, call.answer
        if kind in ("history", "changes", "replay"):
            return self._entries(asks, answer, revision)
        as_of = asks.get("as_of_revision")
        if as_of is not None and as_of > revision:
            return "" if answer.get("code") == "INVALID_FIELD" else "it shows the future"
        verdict = ""
        for at, tick in self._moments(call, revision):
            model = Model(stored=self._past.at(at), tick=tick)
            if kind == "get":
                verdict = self._get(model, asks, answer, revision)
            elif kind == "list":
                verdict = self._list(model, asks, answer, at, revision)
            elif kind == "calendar":
                verdict = self._calendar(model, call, revision)
            else:
                verdict = self._availability(model, asks, answer, at)
            if not verdict:
                return ""
        return verdict

    def _moments(self, call: Call, revision: int) -> Iterator[tuple[int, int]]:
        """Yield the revisions whose state a read may show, each with a time of that state."""
        as_of, time = call.request.asks.get("as_of_revision"), call.request.asks.get("as_of_time")
        if as_of is not None:
            yield as_of, self._past.clocks[as_of]
        elif time is not None:
            yield min(revision, bisect_right(self._past.clocks, time) - 1), time
        else:
            for tick in self._ticks(revision, call.begin, call.end, ()):
                yield revision, tick

    def _get(self, model: Model, asks: Json, answer: Json, revision: int) -> str:
        stored = model.stored.get(asks["id"])
        if answer.get("not_modified"):
            return self._not_modified(stored and stored.at(model.tick), asks["if_none_match"])
        if answer.get("code") == "APPOINTMENT_NOT_FOUND":
            return f"it is {stored}" if stored else ""
        if "appointment" not in answer:
            return f"it is refused: {dict(answer)}"
        if stored is None:
            return "there is no such appointment"
        return self._shown(stored.at(model.tick), answer["appointment"], model.tick, revision)

    def _not_modified(self, stored: Stored | None, tag: str) -> str:
        is_current = stored is not None and self._etags.meaning(tag) == stored.etag
        return "" if is_current else f"it is not modified, and is {stored}"

    def _calendar(self, model: Model, call: Call, revision: int) -> str:
        """Judge a calendar: an event for each appointment of the list."""
        asks, answer = call.request.asks, call.answer
        if "code" in answer:
            return f"it is refused: {dict(answer)}"
        expected = [
            event_of(self._recorded(stored, model.tick, revision), call.organization)
            for stored in self._listed(model, asks)
        ]
        return "" if answer["events"] == expected else f"the model has the events {expected}"

    @staticmethod
    def _listed(model: Model, asks: Json) -> list[Stored]:
        return model.listed(
            resource=asks.get("resource_id"),
            start=asks.get("from"),
            end=asks.get("to"),
            cancelled=asks.get("include_cancelled", False),
        )

    def _list(self, model: Model, asks: Json, answer: Json, at: int, revision: int) -> str:
        if "code" in answer:
            return f"it is refused: {dict(answer)}"
        expected = self._listed(model, asks)
        after = asks.get("after")
        if asks.get("order_by") == "revision":
            expected.sort(key=lambda stored: stored.revision)
            if after:
                expected = [one for one in expected if one.revision > int(after["revision"])]
        elif after:
            place = minute_of(after["start"]), after["id"]
            expected = [one for one in expected if (one.content.start, one.id) > place]
        filters = str(
            sorted((name, value) for name, value in asks.items() if name != "if_none_match")
        )
        if answer.get("not_modified"):
            known = self._lists.get((filters, answer["etag"]))
            if known is None:
                return "it is not modified, but was never answered"
            answer = known
        else:
            if answer["shown"] != at:
                return f"it shows revision {answer['shown']}, not {at}"
            self._lists[filters, answer["etag"]] = answer
        found = answer["appointments"]
        if answer["next"]:
            by_revision = "order_by" in asks
            if len(expected) <= asks["page_size"] and not by_revision:
                return "there is no next page"
            # A page by revision may be short.
            expected = expected[: len(found) if by_revision else asks["page_size"]]
        if [item["id"] for item in found] != [stored.id for stored in expected]:
            return f"the model lists {[stored.id for stored in expected]}"
        verdicts = (
            self._shown(stored, item, model.tick, revision)
            for stored, item in zip(expected, found, strict=True)
        )
        return next((verdict for verdict in verdicts if verdict), "")

    def _entries(self, asks: Json, answer: Json, revision: int) -> str:
        # What a page follows: the last entry of the one before.
        place = max(asks.get("after", 0), asks.get("after_revision", 0))
        if "id" in asks:
            history = self._past.history(asks["id"], revision)
            entries = [entry for entry in history if int(entry["revision"]) > place]
            if not history:
                missing = answer.get("code") == "APPOINTMENT_NOT_FOUND"
                return "" if missing else "there is no such appointment"
        else:
            entries = self._past.selected(
                range(place + 1, revision + 1),
                seen=revision,
                resource=asks.get("resource_id"),
                changes=asks.get("changes", ()),
            )
        if "entries" not in answer:
            return f"it is refused: {dict(answer)}"
        found = answer["entries"]
        if found != entries[: len(found)] or len(found) < min(len(entries), asks["page_size"]):
            return f"the history has {len(entries)} entries there, not these {len(found)}"
        more = len(found) < len(entries)
        # What follows a page may be left out by its filter.
        filtered = asks.keys() & {"resource_id", "changes"}
        right = answer["more"] == more or (answer["more"] and filtered)
        return "" if right else f"there is {'' if more else 'no'} more"

    @staticmethod
    def _availability(model: Model, asks: Json, answer: Json, at: int) -> str:
        if "code" in answer:
            return f"it is refused: {dict(answer)}"
        if answer["shown"] != at:
            return f"it shows revision {answer['shown']}, not {at}"
        return judge_free_times(model, asks, answer)

    def _shown(self, stored: Stored, shown: Json, tick: int, seen: int) -> str:
        """Compare an appointment with the history, as that was after the revision `seen`."""
        recorded = self._recorded(stored, tick, seen)
        if not recorded["etag"]:
            recorded = {**recorded, "etag": shown["etag"]}
        if recorded != shown:
            found = without_text(shown) == without_text(recorded)
            text = "its text differs or is erased: " if found else ""
            return f"{text}the history has {recorded}"
        return ""

    def _recorded(self, stored: Stored, tick: int, seen: int) -> Json:
        """Return an appointment as the history has it; an expiry may not be recorded there yet."""
        recorded = self._past.shown(stored, seen)
        expired = stored.at(tick).state == "EXPIRED"
        if expired and recorded["state"] == "HELD":
            etag = self._etags.tag(stored.revision, expired=True)
            recorded = {**recorded, "state": "EXPIRED", "etag": etag or ""}
        return recorded

    def _ticks(
        self, revision: int, begin: float, end: float, items: Iterable[Item]
    ) -> Iterator[int]:
        """Yield times at which something may have been decided, one for each different state."""
        earliest = self._run.started + begin - self._run.set_back - SLACK
        latest = self._run.started + end + SLACK
        low = max(self._past.clocks[revision], int(earliest * MICROSECONDS))
        high = max(low, int(latest * MICROSECONDS))
        yield low
        holds = {
            stored.content.hold_until
            for stored in self._past.at(revision).values()
            if stored.state == "HELD"
        }
        holds |= {item.write.content.hold_until for item in items if item.write.content}
        for hold in sorted(hold for hold in holds if hold is not None and low <= hold < high):
            yield hold + 1


def _same_conflicts(decided: Answer, answer: Json) -> bool:
    """Return whether an error names the first conflicts, and says whether there are more."""
    more = len(decided.conflicts) > MAX_CONFLICTS
    return conflicts_of(answer) == decided.conflicts[:MAX_CONFLICTS] and (
        answer.get("moreConflicts", more) == more
    )


class Etags:
    """What the etags of an organization stand for."""

    def __init__(self) -> None:
        self._meanings: dict[str, tuple[int, bool]] = {}
        self._tags: dict[tuple[int, bool], str] = {}

    def learn(self, shown: Json) -> str:
        """Learn the etag of an appointment. Return what is wrong with it."""
        revision = int(shown["revision"])
        if not revision:
            return "an appointment that is not stored has an etag" if shown["etag"] else ""
        meaning = revision, shown["state"] == "EXPIRED"
        if (
            self._meanings.setdefault(shown["etag"], meaning) != meaning
            or self._tags.setdefault(meaning, shown["etag"]) != shown["etag"]
        ):
            return f"the etag {shown['etag']!r} stands for different states"
        return ""

    def tag(self, revision: int, *, expired: bool) -> str | None:
        return self._tags.get((revision, expired))

    def meaning(self, tag: str) -> tuple[int, bool]:
        return self._meanings.get(tag, (-1, False))
