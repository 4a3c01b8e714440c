"""A model of the write rules as pure functions, to check the service against.

It covers what the demo sends: upserts of one resource, without etags, keys and cancels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import permutations
from typing import Any, Self

State = frozenset["Booking"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """The content of an appointment."""

    id: str
    start: datetime
    end: datetime
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """Read the body of a request or a response."""
        return cls(
            id=body["id"],
            start=_utc(body["start"]),
            end=_utc(body["end"]),
            created_at=_utc(body["createdAt"]),
            updated_at=_utc(body["updatedAt"]),
        )

    def overlaps(self, other: Self) -> bool:
        """Return whether the half-open ranges overlap: adjacent ranges do not."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The required response to a write, and the state after it."""

    status: int
    outcome: str
    state: State
    conflicts: frozenset[str] = frozenset()


def decide(state: State, written: Booking) -> Decision:
    """Apply one write."""
    if written.start >= written.end:
        return Decision(status=400, outcome="", state=state)
    stored = next((booking for booking in state if booking.id == written.id), None)
    if stored is not None and written.updated_at < stored.updated_at:
        return Decision(status=200, outcome="STALE", state=state)
    if stored == written:
        return Decision(status=200, outcome="UNCHANGED", state=state)
    others = state - {stored}
    conflicts = frozenset(booking.id for booking in others if booking.overlaps(written))
    if conflicts:
        return Decision(status=409, outcome="", state=state, conflicts=conflicts)
    created = stored is None
    return Decision(
        status=201 if created else 200,
        outcome="CREATED" if created else "UPDATED",
        state=others | {written},
    )


def final_states(start: State, written: Iterable[Booking]) -> set[State]:
    """Return the final states of all possible orders of the writes.

    Repetitions of a write are ignored. That is correct if a write cannot take effect twice,
    so the different contents of an id must have different `updated_at`: an older content is
    then stale. Raises ValueError otherwise.
    """
    distinct = list(dict.fromkeys(written))
    if len({(write.id, write.updated_at) for write in distinct}) < len(distinct):
        raise ValueError("two contents of one id have the same updated_at")
    found = set()
    for order in permutations(distinct):
        state = start
        for write in order:
            state = decide(state, write).state
        found.add(state)
    return found


def _utc(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
