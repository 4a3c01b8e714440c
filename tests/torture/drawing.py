"""What the clients ask for, drawn at random: few ids, resources and times, so that calls meet."""

import random
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from tests.torture.record import Item, Json, Request
from tests.writes.values import CONTENT_FIELDS, Content, Write

IDS = tuple("abcdefghijkl")
# Those that are redacted. The history keeps saying who changed the others.
REDACTED_IDS = IDS[-3:]
RESOURCES = ("", "r", "s", "t")
CHANGES = ("CREATED", "UPDATED", "CANCELLED", "CONFIRMED", "EXPIRED", "REDACTED")
FILTERS = ("", "done=true", "done=false", "error:*")
LAST_MINUTE = 120
# Seconds that a hold lasts, at most.
LONGEST_HOLD = 5.0
ATTRIBUTES: tuple[dict[str, Any], ...] = ({}, {"a": 1}, {"a": {"b": 1.5}}, {"b": [None, "x"]})
PATCHES: tuple[dict[str, Any], ...] = ({}, {"a": None}, {"a": {"b": None, "c": 2}}, {"d": True})


@dataclass(slots=True)
class Seen:
    """What clients of an organization have seen, from which they choose what to send."""

    revision: int = 0
    etags: dict[str, list[str]] = field(default_factory=dict)
    # Earlier writes, and lists with their etags.
    sent: list[Item] = field(default_factory=list)
    lists: list[Json] = field(default_factory=list)
    # Lists with the place where their next page begins.
    pages: list[Json] = field(default_factory=list)
    # The next pages of histories and changes.
    entries: list[Request] = field(default_factory=list)
    # Lists of operations with the place where their next page begins.
    operations: list[Json] = field(default_factory=list)
    # The appointments whose ids the service made, and that nobody has cancelled yet.
    made: list[str] = field(default_factory=list)

    def learn(self, request: Request, answer: Json) -> None:
        self.revision = max(self.revision, answer.get("revision") or 0)
        shown = answer.get("appointment")
        if shown and shown["etag"]:
            known = self.etags.setdefault(shown["id"], [])
            known.append(shown["etag"])
            del known[:-4]
        for result in (answer, *answer.get("results", ())):
            created = result.get("outcome") == "CREATED" and result["appointment"]
            if created and created["revision"] != "0":
                self.made += {created["id"]}.difference(IDS, self.made)
        if request.kind == "operations" and answer.get("next"):
            last = answer["operations"][-1]["operation"]
            page = {**request.asks, "page_token": answer["next"], "after": last}
            self.operations.append(page)
            del self.operations[:-4]
        if request.kind == "write":
            self.sent += request.items
            del self.sent[:-40]
        if answer.get("next") and answer.get("appointments"):
            last = answer["appointments"][-1]
            asks = {name: request.asks[name] for name in request.asks if name != "if_none_match"}
            after = {"start": last["start"], "id": last["id"], "revision": last["revision"]}
            self.pages.append({**asks, "page_token": answer["next"], "after": after})
            del self.pages[:-8]
        if answer.get("next") and answer.get("entries") and request.kind != "replay":
            place = int(answer["entries"][-1]["revision"])
            asks = {**request.asks, "page_token": answer["next"], "after": place}
            self.entries.append(Request(kind=request.kind, asks=asks))
            del self.entries[:-8]
        if request.kind == "list" and answer.get("etag") and "min_revision" not in request.asks:
            self.lists.append({**request.asks, "if_none_match": answer["etag"]})
            del self.lists[:-8]


class Drawing:
    """Draws requests. `by_rest` leaves out what REST has no form for."""

    def __init__(self, dice: random.Random, seen: Seen) -> None:
        self._dice = dice
        self._seen = seen
        self._keys = 0
        self._name = f"{dice.randrange(2**40):x}"

    def request(self, *, by_rest: bool) -> Request:
        kind = self._dice.choices(("write", "batch", "read"), (58, 6, 36))[0]
        if kind == "write":
            item = self._repeated() if self._chance(0.12) else None
            item = item or self._item(by_rest=by_rest)
            accepted = not item.write.validate_only and self._chance(0.2)
            return Request(kind="write", items=(item,), accepted=accepted)
        return self._batch() if kind == "batch" else self._read(by_rest=by_rest)

    def _chance(self, probability: float) -> bool:
        return self._dice.random() < probability

    def _repeated(self) -> Item | None:
        """Return an earlier write again: with its key, or another one's key."""
        if not self._seen.sent:
            return None
        item = self._dice.choice(self._seen.sent)
        write = item.write
        narrowed = write.content and _narrowed(write.content, write.fields)
        replaced = "attributes" in write.fields or write.content != narrowed
        if write.kind == "UPDATE" and (item.mask != "names" or replaced):
            return None  # REST has no form for it
        if self._chance(0.1):
            item = replace(
                item, write=replace(item.write, key=self._dice.choice(self._seen.sent).write.key)
            )
        return replace(
            item, tag="", write=replace(item.write, create_only=False, validate_only=False)
        )

    def _item(self, *, by_rest: bool) -> Item:
        kinds = ("UPSERT", "UPDATE", "CONFIRM", "CANCEL", "REDACT")
        kind = self._dice.choices(kinds, (52, 18, 12, 16, 4))[0]
        id = self._dice.choice(REDACTED_IDS if kind == "REDACT" else IDS)
        if self._seen.made and self._chance(0.02):
            # So that they do not occupy everything.
            kind, id = "CANCEL", self._seen.made.pop(0)
        write = Write(kind=kind, id=id)
        mask = "names"
        if kind == "UPSERT":
            write = replace(
                write,
                content=self._content(),
                create_only=self._chance(0.1),
                suggest=self._dice.choice((0, 0, 0, 2)),
            )
            if self._chance(0.02):
                id = ""
                write = replace(write, id=id, generated=True)
        elif kind == "UPDATE":
            write, mask = self._update(id, by_rest=by_rest)
        elif kind == "CANCEL":
            write = replace(write, cancel_updated_at=self._maybe_minute())
        write = replace(write, key=self._key(), validate_only=self._chance(0.06))
        # REST sends `If-Match` and `If-None-Match` in one request as well.
        return Item(write=write, tag=self._tag(id), mask=mask)

    def _content(self) -> Content:
        start = self._dice.randrange(LAST_MINUTE)
        resource = self._dice.choice(RESOURCES)
        more = self._dice.sample(RESOURCES[1:], self._dice.choice((0, 0, 0, 1, 2)))
        return Content(
            resource_id=resource,
            additional_resource_ids=tuple(other for other in more if other != resource),
            start=start,
            end=start + self._dice.randint(1, 8),
            title=self._dice.choice(("", "t", "u")),
            attributes=self._dice.choice(ATTRIBUTES),
            created_at=self._maybe_minute(),
            updated_at=self._maybe_minute(),
            hold_until=self._hold() if self._chance(0.3) else None,
        )

    def _hold(self) -> int:
        """Return the last tick of a hold, rarely of one that is over already."""
        seconds = -1.0 if self._chance(0.03) else self._dice.uniform(0.2, LONGEST_HOLD)
        return int((time.time() + seconds) * 1_000_000)

    def _update(self, id: str, *, by_rest: bool) -> tuple[Write, str]:
        mask = "names" if by_rest else self._dice.choice(("names", "names", "absent", "*"))
        content = self._content()
        names = {name for name in CONTENT_FIELDS if self._chance(0.3)}
        patch = self._dice.choice(PATCHES) if mask != "*" and self._chance(0.3) else None
        missing = self._chance(0.3)
        if mask == "*":
            names = {*CONTENT_FIELDS}
        if missing:
            names |= {"start", "end"}
        if by_rest or patch is not None:
            names -= {"attributes"}
        if mask == "absent":
            names = {
                name
                for name in names
                if name in ("start", "end", "attributes")
                or getattr(content, name) not in ("", (), None)
            }
        if by_rest or mask == "absent":
            content = _narrowed(content, names)
        write = Write(
            kind="UPDATE",
            id=id,
            content=content,
            fields=frozenset(names),
            attributes_patch=patch,
            allow_missing=missing,
        )
        return write, mask

    def _maybe_minute(self) -> int | None:
        return self._dice.randrange(50) if self._chance(0.15) else None

    def _key(self) -> str | None:
        if not self._chance(0.25):
            return None
        self._keys += 1
        return f"{self._name}-{self._keys}"

    def _tag(self, id: str) -> str:
        known = self._seen.etags.get(id)
        if not known or not self._chance(0.2):
            return ""
        return "*" if self._chance(0.2) else self._dice.choice([*known, known[-1], known[-1]])

    def _batch(self) -> Request:
        atomic = self._chance(0.6)
        count = self._dice.randint(1, 4)
        ids = self._dice.sample(IDS, count) if atomic else self._dice.choices(IDS, k=count)
        if not atomic and self._chance(0.02):
            ids[0] = ""
        validate_only = self._chance(0.06)
        items = tuple(
            Item(
                write=Write(
                    kind="UPSERT",
                    id=id,
                    content=self._content(),
                    create_only=self._chance(0.05),
                    key=self._key(),
                    # An atomic batch is validated as a whole.
                    validate_only=validate_only and not atomic,
                    generated=not id,
                ),
                tag=self._tag(id) if self._chance(0.5) else "",
            )
            for id in ids
        )
        return Request(
            kind="batch", items=items, asks={"atomic": atomic, "validate_only": validate_only}
        )

    def watch(self, after: int) -> dict[str, Any]:
        """Draw what a stream asks for."""
        asks: dict[str, Any] = {"after_revision": after}
        return asks | self._filter()

    def _read(self, *, by_rest: bool) -> Request:
        kind = self._dice.choices(
            (
                *("get", "list", "poll", "page", "history", "changes", "availability"),
                *("operations", "calendar"),
            ),
            (28, 28, 10, 8, 8, 12, 14, 4, 3),
        )[0]
        if kind == "operations":
            return self._operations()
        if kind == "calendar" and not by_rest:
            kind = "list"
        if kind == "poll" and self._seen.lists:
            return Request(kind="list", asks=self._dice.choice(self._seen.lists))
        if kind == "page" and self._seen.entries and self._chance(0.5):
            return self._seen.entries.pop()
        if kind == "page" and self._seen.pages:
            return Request(kind="list", asks=self._seen.pages.pop())
        if kind in ("poll", "page"):
            kind = "get"
        asks = self._asks(kind)
        if kind == "calendar":
            return Request(kind=kind, asks=asks)
        if kind == "get" and by_rest and self._chance(0.3):
            asks |= self._condition(asks["id"])
        if kind in ("get", "list", "availability") and self._chance(0.25):
            asks["as_of_revision"] = self._dice.randint(0, self._seen.revision)
        elif kind in ("get", "list") and self._chance(0.1):
            # In the past also while the database's clock is set back.
            seconds = time.time() - self._dice.uniform(31, 90)
            asks["as_of_time"] = int(seconds * 1_000_000)
        elif self._chance(0.2):
            asks["min_revision"] = self._dice.randint(0, self._seen.revision)
        return Request(kind=kind, asks=asks)

    def _asks(self, kind: str) -> dict[str, Any]:
        """Draw what a read asks for, apart from the time of the state."""
        asks: dict[str, Any] = {}
        if kind in ("get", "history"):
            asks["id"] = self._dice.choice(IDS)
        if kind in ("history", "changes"):
            asks["page_size"] = self._dice.choice((5, 50))
        if kind == "changes":
            asks["after_revision"] = max(0, self._seen.revision - self._dice.randrange(30))
            asks |= self._filter()
        if kind == "list":
            asks |= self._window()
        if kind == "calendar":
            asks |= self._window()
            asks = {name: asks[name] for name in asks.keys() - {"page_size", "order_by"}}
        if kind == "availability":
            resources = self._dice.sample(RESOURCES, 2)
            asks |= {"from": 0, "to": LAST_MINUTE + 10, "resource_id": resources}
            if self._chance(0.3):
                asks["match"] = "ALL"
            if self._chance(0.3):
                asks["duration"] = self._dice.choice((3, 10))
        return asks

    def _operations(self) -> Request:
        if self._seen.operations and self._chance(0.4):
            return Request(kind="operations", asks=self._seen.operations.pop())
        asks = {"filter": self._dice.choice(FILTERS), "page_size": self._dice.choice((5, 50))}
        return Request(kind="operations", asks=asks)

    def _filter(self) -> dict[str, Any]:
        """Draw which changes are selected."""
        asks: dict[str, Any] = {}
        if self._chance(0.3):
            asks["resource_id"] = self._dice.choice(RESOURCES)
        if self._chance(0.3):
            asks["changes"] = self._dice.sample(CHANGES, 2)
        return asks

    def _condition(self, id: str) -> dict[str, Any]:
        known = self._seen.etags.get(id)
        return {"if_none_match": self._dice.choice(known)} if known else {}

    def _window(self) -> dict[str, Any]:
        asks: dict[str, Any] = {
            "page_size": self._dice.choice((3, 1000, 1000)),
            "include_cancelled": self._chance(0.5),
        }
        if self._chance(0.4):
            asks["resource_id"] = self._dice.choice(RESOURCES)
        if self._chance(0.4):
            asks["from"] = self._dice.randrange(LAST_MINUTE)
            if self._chance(0.7):
                asks["to"] = asks["from"] + self._dice.randint(0, 20)
        if self._chance(0.3):
            asks["order_by"] = "revision"
        return asks


def _narrowed(content: Content, names: Collection[str]) -> Content:
    """Return the content with only these fields, and without attributes, which REST merges."""
    kept = {name: getattr(content, name) for name in names}
    return replace(Content(start=content.start, end=content.end), **kept)
