"""Judges streams and webhooks: each must send every change that its filter selects, in order."""

from collections.abc import Iterator, Sequence

from tests.torture.instants import Instants
from tests.torture.past import Past
from tests.torture.record import Call, Json

# Seconds in which a worker that hung may send what it had read before.
LATE = 30.0


def judge_streams(
    calls: Sequence[Call], past: Past, instants: Instants
) -> Iterator[tuple[Call, str]]:
    """Yield what is wrong with the messages of streams."""
    places: dict[int, int] = {}
    for call in calls:
        if call.request.kind != "watch" or not call.decided:
            continue
        if "reset" in call.answer or "code" in call.answer:
            yield call, f"the stream ended with {dict(call.answer)}"
            continue
        asks = call.request.asks
        place = places.setdefault(asks["stream"], asks["after_revision"])
        reached: int = call.answer["revision"]
        if wrong := _message(call, place, past, instants.known(call.begin)):
            yield call, wrong
        places[asks["stream"]] = max(place, reached)


def _message(call: Call, place: int, past: Past, known: int) -> str:
    """Judge a message of a stream that has sent all up to a revision.

    What had been redacted before the stream began is sent without its text. What is redacted while
    it runs may have been read before.
    """
    asks, found, reached = call.request.asks, call.answer["entries"], call.answer["revision"]
    if reached < place or (found and int(found[0]["revision"]) <= place):
        return f"the stream does not continue after revision {place}"
    if reached > past.latest:
        return f"revision {reached} is lost: the history ends at {past.latest}"
    early, late = (
        _selected(past, range(place + 1, reached + 1), asks, seen) for seen in (known, past.latest)
    )
    sent = [int(entry["revision"]) for entry in found]
    expected = [int(entry["revision"]) for entry in late]
    if sent != expected:
        return (
            f"the stream does not continue after revision {place}: it sent {sent}, not {expected}"
        )
    for entry, before, after in zip(found, early, late, strict=True):
        if entry not in (before, after):
            return f"the stream sent revision {entry['revision']} as {entry}, and it is {before}"
    return ""


def _selected(past: Past, revisions: range, asks: Json, seen: int) -> list[Json]:
    resource, changes = asks.get("resource_id"), asks.get("changes", ())
    return past.selected(revisions, seen=seen, resource=resource, changes=changes)


class Webhooks:
    """The deliveries of the webhooks of an organization."""

    def __init__(self, calls: Sequence[Call], past: Past, instants: Instants) -> None:
        self._past = past
        self._instants = instants
        self._calls = sorted(
            (call for call in calls if call.request.kind in ("delivery", "webhook")),
            key=lambda call: call.begin,
        )
        # When the history was read. It does not have later changes: a hold expires, or a write that
        # was not answered happens.
        self._read = max(
            (call.begin for call in calls if call.request.kind == "replay"), default=0.0
        )

    def judge(self) -> Iterator[tuple[Call, str]]:
        """Yield what is wrong with deliveries: a change may come again, but not too early."""
        everything: dict[str, list[int]] = {}
        # By webhook: when changes were accepted, and how many that it selects were, one by one.
        accepted: dict[str, dict[int, float]] = {}
        places: dict[str, int] = {}
        for call in self._calls:
            asks = call.request.asks
            webhook = asks["webhook"]
            if webhook not in everything:
                every = _selected(
                    self._past, range(1, self._past.latest + 1), asks, self._past.latest
                )
                everything[webhook] = [int(entry["revision"]) for entry in every]
                accepted[webhook], places[webhook] = {}, 0
            if not call.decided or "code" in call.answer:
                continue
            wanted, done = everything[webhook], accepted[webhook]
            place = places[webhook]
            now = call.begin if call.request.kind == "delivery" else call.end
            while place < len(wanted) and done.get(wanted[place], now + 1) <= now:
                place += 1
            places[webhook] = place
            due = wanted[place] if place < len(wanted) else self._past.latest + 1
            if call.request.kind == "webhook":
                if (reached := call.answer["delivered"]) >= due:
                    yield call, f"revision {reached} is delivered, and {due} was not accepted"
                continue
            [entry] = call.answer["entries"]
            made = int(entry["revision"])
            if made > self._past.latest:
                if call.begin < self._read:
                    yield call, f"revision {made} is lost: the history ends at {self._past.latest}"
                continue
            if made > due:
                yield call, f"the webhook sent revision {made} before {due} was accepted"
            elif made not in wanted:
                yield call, f"the webhook sent revision {made}, which it does not select"
            elif wrong := self._wrong(entry, call):
                yield call, wrong
            if call.answer["accepted"]:
                done[made] = min(done.get(made, call.end), call.end)

    def _wrong(self, entry: Json, call: Call) -> str:
        made = int(entry["revision"])
        known = max(made, self._instants.known(call.begin - LATE))
        shown = [self._past.entry(made, seen) for seen in (known, self._past.latest)]
        return "" if entry in shown else f"the webhook sent {entry}, and it is {shown[0]}"
