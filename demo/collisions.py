"""Sends requests that collide, and checks what must hold afterwards."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from demo.model import Booking, State, decide, final_states
from demo.rest import IN_FLIGHT, Answer, Rest, each
from local.programs import ROOT

BODIES = ROOT / "tests" / "data" / "colliding-requests.jsonl"
ALLOWED = {200, 201, 400, 409}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All requests and responses of one run, and the state read afterwards.

    `failures` lists by guarantee how it was violated. `seconds` is the time of the requests.
    """

    seconds: float
    answers: list[tuple[Booking, Answer]]
    before: list[dict[str, Any]]
    history: list[dict[str, Any]]
    listed: list[dict[str, Any]]
    failures: dict[str, list[str]] = field(default_factory=dict)


async def send(rest: Rest, organization: str, requests: int, seed: int) -> Result:
    """Send randomly drawn requests, IN_FLIGHT at a time, then read and check the state."""
    bodies = [json.loads(line) for line in BODIES.read_text().splitlines()]
    drawn = Random(seed).choices(bodies, k=requests)  # noqa: S311  repeatable, not secret
    before = await rest.changes(organization)
    answers: list[tuple[Booking, Answer]] = []

    async def post(body: dict[str, Any]) -> None:
        answer = await rest.upsert({**body, "organizationId": organization})
        answers.append((Booking.of(body), answer))

    begun = time.perf_counter()
    await each(drawn, post)
    return check(
        Result(
            seconds=time.perf_counter() - begun,
            answers=answers,
            before=before,
            history=await rest.changes(organization),
            listed=await rest.appointments(organization),
        )
    )


def check(result: Result) -> Result:
    """Fill in `failures`: an entry per guarantee, empty if the guarantee held."""
    states = replay(result.history)
    start, listed = states[len(result.before)], frozenset(map(Booking.of, result.listed))
    possible = final_states(start, [written for written, _ in result.answers])
    revisions = [int(entry["revision"]) for entry in result.history]
    result.failures.update(
        {
            "only 200, 201, 400 and 409": [
                f"{answer.status}: {answer.body}"
                for _, answer in result.answers
                if answer.status not in ALLOWED
            ],
            "no two appointments overlap": [
                f"{one.id} and {other.id}"
                for one in listed
                for other in listed
                if one.id < other.id and one.overlaps(other)
            ],
            "history has no gap": (
                [] if revisions == list(range(1, len(revisions) + 1)) else [str(revisions)]
            ),
            "history replays to the stored state": (
                [] if states[-1] == listed else [f"{states[-1]} is not {listed}"]
            ),
            "every response matches the state at its revision": [
                problem
                for written, answer in result.answers
                if (problem := explain(written, answer, states)) is not None
            ],
            f"the state is one of the {len(possible)} possible ones, over all request orders": (
                [] if listed in possible else [f"{listed}"]
            ),
        }
    )
    return result


def replay(history: list[dict[str, Any]]) -> list[State]:
    """Return the state at each revision, from 0 on."""
    states: list[State] = [frozenset()]
    for entry in history:
        changed = Booking.of(entry["appointment"])
        others = frozenset(booking for booking in states[-1] if booking.id != changed.id)
        active = entry["appointment"]["state"] == "ACTIVE"
        states.append(others | {changed} if active else others)
    return states


def explain(written: Booking, answer: Answer, states: list[State]) -> str | None:
    """Return what is wrong with a response, given the states at each revision, or None."""
    if answer.revision is None:
        expected = decide(frozenset(), written)
        return None if expected.status == answer.status == 400 else f"no revision: {answer}"
    if answer.revision >= len(states):
        return f"{written} at revision {answer.revision}: the history ends before it"
    wrote = answer.outcome in ("CREATED", "UPDATED")
    expected = decide(states[answer.revision - wrote], written)
    conflicts = frozenset(conflict["id"] for conflict in answer.body.get("conflicts", ()))
    seen = (answer.status, answer.outcome, conflicts)
    if seen != (expected.status, expected.outcome, expected.conflicts):
        return f"{written} at revision {answer.revision}: {seen}, expected {expected}"
    if wrote and expected.state != states[answer.revision]:
        return f"{written}: the history has another change at revision {answer.revision}"
    return None


def show(console: Console, result: Result) -> bool:
    """Print the result; return whether all guarantees held."""
    counted = Counter(
        (answer.status, answer.outcome or answer.body.get("code", ""))
        for _, answer in result.answers
    )
    table = Table("status", "outcome", "requests", box=SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for (status, outcome), count in sorted(counted.items()):
        table.add_row(str(status), outcome, str(count))
    console.print(table)
    rate = len(result.answers) / result.seconds
    console.print(
        f"{len(result.answers)} requests, {IN_FLIGHT} in flight, {result.seconds:.2f} s,"
        f" {rate:.0f} a second\n"
    )
    columns = ("id", "start", "end", "updatedAt")
    stored = Table(*columns, box=SIMPLE_HEAD)
    for booking in result.listed:
        stored.add_row(*(str(booking[column]) for column in columns))
    console.print(stored)
    for guarantee, failures in result.failures.items():
        console.print(
            f"[red]FAILED[/red]  {guarantee}" if failures else f"[green]ok[/green]  {guarantee}"
        )
        for failure in failures[:5]:
            console.print(f"        {failure}", markup=False)
    return not any(result.failures.values())
