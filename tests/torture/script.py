"""Records that are written call by call, as a service without faults would answer them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.torture.checker import Report, check
from tests.torture.doors import held_until
from tests.torture.erasures import erased
from tests.torture.record import Call, Item, Record, Request, Run
from tests.torture.shown import MICROSECONDS, time_of
from tests.writes.model import Model
from tests.writes.values import Answer, Change, Content, Stored, Write

STARTED = 1_800_000_000.0
ORGANIZATION = "o"


class Script:
    """The calls of one organization, one after another, each half a second long."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.entries: list[dict[str, Any]] = []
        self.now = 0.0
        self._last = 0
        self._model = Model(latest_hold=10**18)
        self._times: dict[str, tuple[str, str]] = {}

    def tick(self, seconds: float) -> int:
        """Return the last tick of a hold that ends at a time of the run."""
        return int((STARTED + seconds) * MICROSECONDS) - 1

    def upsert(self, id: str, start: int, end: int, **fields: Any) -> Call:
        of_write = {"key", "create_only", "validate_only"} & fields.keys()
        options = {name: fields.pop(name) for name in of_write}
        content = Content(start=start, end=end, **fields)
        return self.write(Write(kind="UPSERT", id=id, content=content, **options))

    def write(self, write: Write, *, accepted: bool = False) -> Call:
        """Write; with `accepted` as an operation, which is read at once."""
        if accepted:
            call = self.submit(write)
            self.finish(call)
            return call
        number = self._begin()
        return self._end(number, _request(write), self._apply(write, str(number)))

    def submit(self, write: Write) -> Call:
        """Have a write accepted, to be applied by `finish`."""
        number = self._begin()
        return self._end(
            number, _request(write, accepted=True), {"operation": f"operations/{number}"}
        )

    def finish(self, call: Call, *, without_text: bool = False) -> Call:
        """Apply an accepted write and read its operation.

        `without_text`: as what was accepted before a redaction.
        """
        write, actor = call.request.items[0].write, str(call.number)
        if without_text:
            write, actor = replace(write.redacted(), key=None), ""
        number = self._begin()
        result = self._apply(write, actor)
        asks = {"operation": call.answer["operation"], "of": call.number}
        return self._end(number, Request(kind="operation", asks=asks), {"done": True, **result})

    def atomic(self, *writes: Write) -> Call:
        request = Request(
            kind="batch",
            items=tuple(Item(write=write) for write in writes),
            asks={"atomic": True, "validate_only": False},
        )
        number = self._begin()
        answers = self._model.apply_atomically(writes, validate_only=False)
        self._record(str(number))
        assert isinstance(answers, list)
        results = [self._answer(answer) for answer in answers]
        return self._end(number, request, {"results": results, "revision": self._model.revision})

    def list(self) -> Call:
        asks = {"include_cancelled": True, "page_size": 1000}
        number = self._begin()
        shown = [self._shown(stored) for stored in self._model.listed()]
        revision = self._model.revision
        answer = {
            "appointments": shown,
            "etag": f"list {revision} {self.now}",
            "shown": revision,
            "next": "",
            "revision": revision,
        }
        return self._end(number, Request(kind="list", asks=asks), answer)

    def get(self, id: str) -> Call:
        number = self._begin()
        [stored] = [stored for stored in self._model.listed() if stored.id == id]
        answer = {"appointment": self._shown(stored), "revision": self._model.revision}
        return self._end(number, Request(kind="get", asks={"id": id}), answer)

    def history(self, id: str) -> Call:
        entries = [entry for entry in self.entries if entry["appointment"]["id"] == id]
        asks = {"id": id, "page_size": 1000}
        return self.read("history", asks, {"entries": entries, "more": False})

    def read(self, kind: str, asks: dict[str, Any], answer: dict[str, Any]) -> Call:
        """Read something that is answered so, at the latest revision."""
        revision = {"revision": self._model.revision}
        return self._end(self._begin(), Request(kind=kind, asks=asks), {**answer, **revision})

    def watch(self, **filters: Any) -> None:
        """Watch from the first revision, with a message for every change that is selected."""
        asks = {"stream": len(self.calls), "after_revision": 0, **filters}
        request = Request(kind="watch", asks=asks)
        for entry in self._selected(filters):
            answer = {"entries": [entry], "revision": int(entry["revision"])}
            self._end(self._begin(), request, answer)

    def deliver(self, **filters: Any) -> Sequence[Call]:
        """Send every change that is selected to a webhook, and then read how far it is."""
        asks = {"webhook": "w", "after_revision": 0, **filters}
        request = Request(kind="delivery", asks=asks)
        sent = [
            self._end(self._begin(), request, {"entries": [entry], "accepted": True})
            for entry in self._selected(filters)
        ]
        answer = {"delivered": len(self.entries)}
        return [*sent, self._end(self._begin(), Request(kind="webhook", asks=asks), answer)]

    def _selected(self, filters: dict[str, Any]) -> Sequence[dict[str, Any]]:
        return [
            entry
            for entry in self.entries
            if entry["change"] in (*filters.get("changes", (entry["change"],)), "REDACTED")
            and filters.get("resource_id", entry["appointment"]["resourceId"])
            == entry["appointment"]["resourceId"]
        ]

    def operations(self, **asks: Any) -> Call:
        """List the operations that were read as done, the latest first."""
        listed = [
            {"operation": call.request.asks["operation"], **call.answer}
            for call in reversed(self.calls)
            if call.request.kind == "operation" and call.answer["done"]
        ]
        asks = {"filter": "", "page_size": 50, **asks}
        answer = {"operations": listed, "next": ""}
        return self._end(self._begin(), Request(kind="operations", asks=asks), answer)

    def edit(self, call: Call, **changes: Any) -> None:
        """Change an answer, or with `begin`, `end` or `request` the call itself."""
        of_call = {"begin", "end", "request"} & changes.keys()
        fields = {name: changes.pop(name) for name in of_call}
        place = next(n for n, other in enumerate(self.calls) if other.number == call.number)
        answer = {**call.answer, **changes}
        self.calls[place] = replace(call, answer=answer, **fields)

    def answered(self, call: Call, answer: dict[str, Any]) -> None:
        """Replace an answer."""
        place = next(n for n, other in enumerate(self.calls) if other.number == call.number)
        self.calls[place] = replace(call, answer=answer)

    def check(self) -> Report:
        """Read the history, as the last call, and check all."""
        self.calls = [call for call in self.calls if call.request.kind != "replay"]
        request = Request(kind="replay", asks={"after_revision": 0, "page_size": 1000})
        answer = {"entries": self.entries, "more": False, "revision": len(self.entries)}
        self._end(self._begin(), request, answer)
        return check(Record.of(Run(seed=0, started=STARTED), self.calls))

    def found(self) -> str:
        """Return all findings."""
        return "\n".join(str(finding) for finding in self.check().findings)

    def _begin(self) -> int:
        self.now += 1
        self._model.tick = int((STARTED + self.now + 0.25) * MICROSECONDS)
        self._last += 1
        return self._last

    def _end(self, number: int, request: Request, answer: dict[str, Any]) -> Call:
        call = Call(
            number=number,
            organization=ORGANIZATION,
            door="script",
            request=request,
            begin=self.now,
            end=self.now + 0.5,
            answer=answer,
        )
        self.calls.append(call)
        return call

    def _apply(self, write: Write, actor: str) -> dict[str, Any]:
        if write.kind == "REDACT" and any(
            entry["actor"] for entry in self.entries if entry["appointment"]["id"] == write.id
        ):
            self._model.erasable.add(write.id)
        answer = self._model.apply(write)
        self._record(actor)
        return {**self._answer(answer), "revision": self._model.revision}

    def _record(self, actor: str) -> None:
        for change in self._model.history[len(self.entries) :]:
            self.entries.append(self._entry(change, actor))
            if change.change == "REDACTED":
                self.entries[:] = [
                    {**erased(entry)} if entry["appointment"]["id"] == change.stored.id else entry
                    for entry in self.entries
                ]

    def _entry(self, change: Change, actor: str) -> dict[str, Any]:
        recorded = held_until(self._model.tick - 1).ToJsonString()
        content = change.stored.content
        created, updated = self._times.get(change.stored.id, (recorded, recorded))
        if change.change in ("CREATED", "UPDATED"):
            created = created if content.created_at is None else time_of(content.created_at)
            updated = recorded if content.updated_at is None else time_of(content.updated_at)
        self._times[change.stored.id] = created, updated
        return {
            "revision": str(change.stored.revision),
            "change": change.change,
            "recordedAt": recorded,
            "actor": "" if change.change in ("EXPIRED", "REDACTED") else actor,
            "idempotencyKey": change.key or "",
            "appointment": self._shown(change.stored),
        }

    def _answer(self, answer: Answer) -> dict[str, Any]:
        if answer.stored is not None:
            return {"outcome": answer.result, "appointment": self._shown(answer.stored)}
        conflicts = [
            {
                "id": other.id,
                "start": time_of(other.start),
                "end": time_of(other.end),
                "version": other.version,
                "resourceIds": list(other.resource_ids),
            }
            for other in answer.conflicts
        ]
        return {"code": answer.result, "detail": "", "conflicts": conflicts}

    def _shown(self, stored: Stored) -> dict[str, Any]:
        content = stored.content
        created, updated = self._times.get(stored.id, ("", ""))
        expired = "x" if stored.state == "EXPIRED" else ""
        shown = {
            "organizationId": ORGANIZATION,
            "resourceId": content.resource_id,
            "additionalResourceIds": list(content.additional_resource_ids),
            "id": stored.id,
            "start": time_of(content.start),
            "end": time_of(content.end),
            "title": content.title,
            "attributes": content.attributes,
            "createdAt": created,
            "updatedAt": updated,
            "state": stored.state,
            "version": stored.version,
            "revision": str(stored.revision),
            "etag": f"{stored.revision}{expired}" if stored.revision else "",
        }
        if content.hold_until is not None:
            shown["holdUntil"] = held_until(content.hold_until).ToJsonString()
        return shown


def _request(write: Write, *, accepted: bool = False) -> Request:
    return Request(kind="write", items=(Item(write=write),), accepted=accepted)
