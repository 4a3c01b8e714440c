"""Loads a real programme: FOSDEM 2023, 780 talks in 35 rooms, one of them double-booked."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import Progress

from demo.rest import Answer, Rest, each
from local.programs import ROOT

PROGRAMME = ROOT / "tests" / "data" / "fosdem-2023.jsonl"
ORGANIZATION = "fosdem-2023"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The response to every talk, in the order of the file."""

    talks: list[dict[str, Any]]
    answers: list[Answer]

    @property
    def counts(self) -> Counter[str]:
        """The number of talks by outcome: created, unchanged, conflict, ..."""
        return Counter(map(outcome, self.answers))

    @property
    def as_expected(self) -> bool:
        """Whether all talks but one are stored, by this load or an earlier one."""
        stored = self.counts["created"] + self.counts["unchanged"]
        return stored == len(self.talks) - 1 and self.counts["conflict"] == 1


def outcome(answer: Answer) -> str:
    """Return the outcome as one word; for an unexpected error, its status and detail."""
    if answer.status == 409 and answer.body.get("code") == "TIME_RANGE_CONFLICT":
        return "conflict"
    return answer.outcome.lower() or f"{answer.status} {answer.body.get('detail', '')}"


async def load(rest: Rest, organization: str, console: Console) -> Load:
    """Send every talk; rooms in parallel, the talks of a room in the order of the file.

    So the order of the file decides which of two colliding talks is stored.
    """
    talks = [json.loads(line) for line in PROGRAMME.read_text().splitlines()]
    rooms: dict[str, list[int]] = defaultdict(list)
    for number, talk in enumerate(talks):
        talk["organizationId"] = organization
        rooms[talk["resourceId"]].append(number)
    answers: dict[int, Answer] = {}

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("talks", total=len(talks))

        async def send(room: list[int]) -> None:
            for number in room:
                answers[number] = await rest.upsert(talks[number])
                progress.advance(task)

        # The rooms with most talks first, so that IN_FLIGHT requests run until the end.
        await each(sorted(rooms.values(), key=len, reverse=True), send)
    return Load(talks=talks, answers=[answers[number] for number in range(len(talks))])


def show(console: Console, loaded: Load) -> bool:
    """Print the counts and both talks of each conflict; return whether all was as expected."""
    names = {talk["id"]: talk for talk in loaded.talks}
    counts = loaded.counts.most_common()
    console.print(", ".join(f"{count} {word}" for word, count in counts), markup=False)
    for talk, answer in zip(loaded.talks, loaded.answers, strict=True):
        if outcome(answer) != "conflict":
            continue
        console.print(f"\nRefused, room {talk['resourceId']} is taken:", markup=False)
        console.print(f"  {describe(talk)}", markup=False)
        console.print("by", markup=False)
        for conflict in answer.body["conflicts"]:
            console.print(f"  {describe(names[conflict['id']])}", markup=False)
    return loaded.as_expected


def describe(talk: dict[str, Any]) -> str:
    """Return title, id, room and local times of a talk."""
    start, end = datetime.fromisoformat(talk["start"]), datetime.fromisoformat(talk["end"])
    times = f"{start:%a %d %b %Y %H:%M}-{end:%H:%M} {start:%Z}"
    return f"{talk['title']} (id {talk['id']}, room {talk['resourceId']}, {times})"
