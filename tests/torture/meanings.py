"""What calls mean: the states that their etags stand for, and the ids that the service made."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tests.torture.erasures import results
from tests.torture.judge import Etags
from tests.torture.record import Call, Item, Json
from tests.writes.values import ANY_ETAG


class Meanings:
    """Adds to calls what their senders did not know. `problems` has ids that were made twice."""

    def __init__(self, calls: Sequence[Call], etags: Etags) -> None:
        self._etags = etags
        # The ids that were made, by the numbers of the calls.
        self._made: dict[int, str] = {}
        self.problems: list[tuple[Call, str]] = []
        sent = {call.number: call for call in calls if _generates(call.request.items)}
        makers: dict[str, Call] = {}
        for call in calls:
            for number, shown in _shown(call):
                maker = sent.get(number)
                if maker is not None:
                    self._learn(maker, shown, makers)
            for entry in call.answer.get("entries", ()):
                actor, shown = entry["actor"], entry["appointment"]
                maker = sent.get(int(actor)) if actor.isdecimal() else None
                if maker is not None and shown["id"] not in _ids(maker):
                    self._learn(maker, shown, makers)

    def of(self, call: Call) -> Call:
        """Return a call whose writes have their ids, and expect what their etags stand for."""
        if not any(item.tag or item.write.generated for item in call.request.items):
            return call
        items = tuple(self._item(call, item) for item in call.request.items)
        return replace(call, request=replace(call.request, items=items))

    def _item(self, call: Call, item: Item) -> Item:
        if item.write.generated:
            write = replace(item.write, id=self._made.get(call.number, ""))
            item = replace(item, write=write)
        if not item.tag:
            return item
        expected = ANY_ETAG if item.tag == "*" else self._etags.meaning(item.tag)
        return replace(item, write=replace(item.write, expected=expected))

    def _learn(self, maker: Call, shown: Json, makers: dict[str, Call]) -> None:
        id = shown["id"]
        known = self._made.setdefault(maker.number, id)
        other = makers.setdefault(id, maker)
        if known != id and not _keys(maker):
            self.problems.append((maker, f"the service made the ids {known!r} and {id!r} for it"))
        if other is not maker and not _keys(maker) & _keys(other):
            text = f"the service made the id {id!r}, as for call {other.number}"
            self.problems.append((maker, text))


def _generates(items: Iterable[Item]) -> bool:
    return any(item.write.generated for item in items)


def _ids(call: Call) -> set[str]:
    return {item.write.id for item in call.request.items}


def _keys(call: Call) -> set[str]:
    generated = [item.write for item in call.request.items if item.write.generated]
    return {write.key for write in generated if write.key}


def _shown(call: Call) -> Iterable[tuple[int, Json]]:
    """Yield the appointments of writes without an id, with the numbers of their calls."""
    if call.request.kind == "operation" and "appointment" in call.answer:
        yield call.request.asks["of"], call.answer["appointment"]
    for item, answer in results(call):
        if item.write.generated and "appointment" in answer:
            yield call.number, answer["appointment"]
