"""The kinds of change, and what each may do to an appointment: the rules of the replay.

A new kind of change is one entry of `KINDS`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of change.

    `states` are the pairs of the states before and after it. The state before the first change
    of an appointment is "". A change that keeps the content leaves all as it was, apart from the
    state; one that makes the appointment ACTIVE also ends its hold. `in_batch` says whether it can
    be part of an atomic batch, between whose changes appointments may overlap. One that erases also
    empties the earlier changes of the appointment: title, attributes, actors and keys.
    """

    states: frozenset[tuple[str, str]]
    keeps_content: bool = True
    in_batch: bool = False
    erases: bool = False


def _pairs(before: Iterable[str], after: Iterable[str]) -> frozenset[tuple[str, str]]:
    return frozenset(product(before, after))


KINDS = {
    "CREATED": Kind(
        states=_pairs([""], ["ACTIVE", "HELD"]),
        keeps_content=False,
        in_batch=True,
    ),
    # A firm appointment cannot be held.
    "UPDATED": Kind(
        states=_pairs(["HELD", "EXPIRED", "CANCELLED"], ["ACTIVE", "HELD"])
        | _pairs(["ACTIVE"], ["ACTIVE"]),
        keeps_content=False,
        in_batch=True,
    ),
    "CONFIRMED": Kind(states=_pairs(["HELD"], ["ACTIVE"])),
    # A batch records the holds that have expired and are in its way.
    "EXPIRED": Kind(states=_pairs(["HELD"], ["EXPIRED"]), in_batch=True),
    "CANCELLED": Kind(states=_pairs(["ACTIVE", "HELD", "EXPIRED"], ["CANCELLED"])),
    # It keeps the content, since that of the change before it is empty by then.
    "REDACTED": Kind(
        states=frozenset((state, state) for state in ("ACTIVE", "HELD", "EXPIRED", "CANCELLED")),
        erases=True,
    ),
}

# Each as "kind:before:after".
TRANSITIONS = sorted(
    f"{name}:{before}:{after}" for name, kind in KINDS.items() for before, after in kind.states
)
KEEPING = sorted(name for name, kind in KINDS.items() if kind.keeps_content)
IN_BATCH = sorted(name for name, kind in KINDS.items() if kind.in_batch)
ERASING = sorted(name for name, kind in KINDS.items() if kind.erases)
