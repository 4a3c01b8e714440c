"""The real-time order: what a call must have seen, and what it cannot have seen yet.

The changes of an organization are in the order of their revisions. So the calls can be put in one
order that agrees with their times if and only if no call shows an older revision than one that
ended before it began, and none shows the change of a call that began after it had ended.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from tests.torture.record import Call


class Instants:
    """When the revisions of an organization were known, and when they can have come to be."""

    def __init__(self, seen: Iterable[tuple[float, int]], began: Sequence[float]) -> None:
        """Take the revisions that answers show with the answers' ends, and the begins of changes.

        `began` has the begin of the call that made each change, from revision 1.
        """
        pairs = sorted(seen)
        self._ends = [end for end, _ in pairs]
        self._known = list(accumulate((revision for _, revision in pairs), max))
        # A change cannot come to be before those with lower revisions.
        self._born = [0.0, *accumulate(began, max)]

    def known(self, time: float) -> int:
        """Return the latest revision that an answer has shown by a time."""
        place = bisect_left(self._ends, time)
        return self._known[place - 1] if place else 0

    def possible(self, revision: int, time: float) -> bool:
        """Return whether a revision can have come to be by a time."""
        return revision < len(self._born) and self._born[revision] <= time


def is_fresh(call: Call) -> bool:
    """Return whether a call must see all that was known before it began."""
    return call.request.kind not in ("watch", "operation", "operations") and (
        "min_revision" not in call.request.asks
    )


def applied_in_order(operations: Iterable[tuple[Call, int]]) -> Iterable[tuple[Call, Call]]:
    """Yield pairs of operations that were applied in another order than they were accepted.

    An operation comes with the revision that it was applied at.
    """
    waiting = sorted(operations, key=lambda one: one[0].begin)
    accepted = sorted(
        (one for one in waiting if "operation" in one[0].answer), key=lambda one: one[0].end
    )
    place = 0
    latest: tuple[Call, int] | None = None
    for call, revision in waiting:
        while place < len(accepted) and accepted[place][0].end < call.begin:
            if latest is None or accepted[place][1] > latest[1]:
                latest = accepted[place]
            place += 1
        if latest is not None and revision < latest[1]:
            yield latest[0], call
