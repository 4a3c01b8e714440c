"""The record of a run: every call with its begin, end and answer, as JSON Lines.

`begin` and `end` are seconds since the start of the run, by one clock that never goes back. The
time of the machine's calendar clock at the start is in the first line, so that they can be compared
with the times of holds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import IO, Any, Self

import orjson

from tests.writes.values import Content, Write

Json = Mapping[str, Any]

# What an answer means if it is not the database's decision.
UNKNOWN = "unknown"
NOTHING = "nothing"
FAILURE = "failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A write with the etag that it is sent with, and how an update names its fields.

    A hold until a tick lasts until the microsecond after it, since 1970.
    """

    write: Write
    tag: str = ""
    mask: str = "names"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked: writes (`write`, `batch`), or a read with its parameters."""

    kind: str
    items: tuple[Item, ...] = ()
    asks: Json = field(default_factory=dict)
    # Sent to be applied later.
    accepted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call. Its number is the actor in the history.

    The answer has the organization's `revision` if the database decided; `unknown` if the write
    may have happened; `nothing` if it says that nothing was written; `failure` if nothing like it
    should ever be answered.
    """

    number: int
    organization: str
    door: str
    request: Request
    begin: float
    end: float
    answer: Json

    @property
    def decided(self) -> bool:
        return not self.answer.keys() & {UNKNOWN, NOTHING, FAILURE}

    @property
    def over(self) -> float:
        """When it has no effect any more. Only an answer of the database tells."""
        return self.end if self.decided and "operation" not in self.answer else inf

    @property
    def revision(self) -> int | None:
        revision: int | None = self.answer.get("revision")
        return revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The first line. Times in seconds; `set_back` is the furthest that a clock was set back."""

    seed: int
    started: float
    set_back: float = 0.0
    left_out: tuple[str, ...] = ()


class Recorder:
    """Writes a record."""

    def __init__(self, file: IO[bytes], run: Run) -> None:
        self._file = file
        self._write({"run": asdict(run)})

    def call(self, call: Call) -> None:
        self._write({"call": _call_as_json(call)})

    def fault(self, name: str, begin: float, end: float) -> None:
        self._write({"fault": {"name": name, "begin": begin, "end": end}})

    def _write(self, line: Json) -> None:
        self._file.write(orjson.dumps(line) + b"\n")


class Record:
    """A record that was written. It is read once for its outline, then by organization."""

    def __init__(self, path: Path) -> None:
        self._lines: dict[str, list[bytes]] = {}
        self.faults: list[Json] = []
        self.calls = 0
        with path.open("rb") as file:
            self.run = Run(**orjson.loads(file.readline())["run"])
            for line in file:
                parsed = orjson.loads(line)
                if "fault" in parsed:
                    self.faults.append(parsed["fault"])
                else:
                    self.calls += 1
                    self._lines.setdefault(parsed["call"]["organization"], []).append(line)

    @classmethod
    def of(cls, run: Run, calls: list[Call]) -> Self:
        """Return a record that was not written to a file."""
        record = cls.__new__(cls)
        record.run, record.faults, record.calls = run, [], len(calls)
        record._lines = {}
        for call in calls:
            line = orjson.dumps({"call": _call_as_json(call)})
            record._lines.setdefault(call.organization, []).append(line)
        return record

    def organizations(self) -> Iterator[tuple[str, list[Call]]]:
        for organization, lines in self._lines.items():
            yield organization, [_call_of(orjson.loads(line)["call"]) for line in lines]


def _call_as_json(call: Call) -> Json:
    request = {
        "kind": call.request.kind,
        "items": [_item_as_json(item) for item in call.request.items],
        "asks": call.request.asks,
        "accepted": call.request.accepted,
    }
    return {**{name.name: getattr(call, name.name) for name in fields(call)}, "request": request}


def _item_as_json(item: Item) -> Json:
    write = {name.name: getattr(item.write, name.name) for name in fields(Write)}
    content = item.write.content
    write["content"] = content and {
        name.name: getattr(content, name.name) for name in fields(content)
    }
    write["fields"] = sorted(item.write.fields)
    return {"write": write, "tag": item.tag, "mask": item.mask}


def _call_of(line: Json) -> Call:
    request = line["request"]
    items = tuple(_item_of(item) for item in request["items"])
    return Call(**{**line, "request": Request(**{**request, "items": items})})


def _item_of(line: Json) -> Item:
    write = dict(line["write"])
    if write["content"] is not None:
        more = tuple(write["content"]["additional_resource_ids"])
        write["content"] = Content(**{**write["content"], "additional_resource_ids": more})
    write["fields"] = frozenset(write["fields"])
    write["expected"] = write["expected"] and tuple(write["expected"])
    return Item(write=Write(**write), tag=line["tag"], mask=line["mask"])
