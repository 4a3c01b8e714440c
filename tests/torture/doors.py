"""The two doors to the service: gRPC, and REST through a gateway. Both give the same answers.

An answer is JSON in the names of REST. See `Call` in record.py.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from tests.torture.record import FAILURE, NOTHING, UNKNOWN, Item, Json

# Reasons after which nothing was written, whatever the message says.
_NOTHING = frozenset({"OVERLOADED", "LOCK_TIMEOUT"})
# Reasons of answers that a fault may cause.
_TEMPORARY = frozenset(
    {
        "DATABASE_UNAVAILABLE",
        "BROKER_UNAVAILABLE",
        "SERVICE_STOPPING",
        "SERVICE_UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "SLOW_READER",
    }
)
_NEVER = frozenset({"INTERNAL", "OPERATION_FAILED"})


class Interrupted(Exception):
    """A stream ended."""


class Door(Protocol):
    """Sends requests for an organization. `seconds` is the caller's patience."""

    name: str

    async def write(
        self, organization: str, item: Item, *, accepted: bool, actor: str, seconds: float
    ) -> Json:
        """Write, or with `accepted` submit the write, whose answer names an `operation`."""

    async def batch(
        self,
        organization: str,
        items: Sequence[Item],
        *,
        atomic: bool,
        validate_only: bool,
        actor: str,
        seconds: float,
    ) -> Json:
        """Write a batch."""

    async def read(self, organization: str, kind: str, asks: Json, *, seconds: float) -> Json:
        """Read: `get`, `list`, `history`, `changes`, `availability`, `operation`, `operations`.

        REST also has `calendar`.
        """

    def watch(self, organization: str, asks: Json, *, seconds: float) -> AsyncGenerator[Json, None]:
        """Yield answers with the entries that a stream sends. Raises Interrupted."""


def refused(problem: Mapping[str, Any], revision: int | None) -> Json:
    """Return the answer of an error of the service or the gateway."""
    code, detail = problem.get("code", ""), problem.get("detail", "")
    said = f"{code}: {detail}"
    if code in _NEVER or not code:
        return {FAILURE: said}
    if code in _NOTHING or (code in _TEMPORARY and "nothing was" in detail):
        return {NOTHING: said}
    if code in _TEMPORARY:
        return {UNKNOWN: said}
    return {"revision": revision, **decided(problem)}


def decided(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an error says of a decision of the database."""
    answer = {"code": problem["code"], "detail": problem.get("detail", "")}
    for name in ("conflicts", "alternatives", "items"):
        if problem.get(name):
            answer[name] = problem[name]
    if "conflicts" in answer:
        answer["moreConflicts"] = problem.get("moreConflicts", False)
    return answer


def held_until(tick: int) -> Timestamp:
    """Return the time until which a hold lasts that lasts until a tick."""
    made = Timestamp()
    made.FromMicroseconds(tick + 1)
    return made
