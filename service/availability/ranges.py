"""Ranges of time as two sorted lists, which built-in functions combine fast."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, compress, islice
from operator import lt
from typing import Self


@dataclass(frozen=True, slots=True)
class Ranges:
    """Half-open ranges `[starts[i], ends[i])`, in order, that neither overlap nor touch."""

    starts: Sequence[int] = ()
    ends: Sequence[int] = ()

    @classmethod
    def union(cls, *several: tuple[Iterable[int], Iterable[int]]) -> Self:
        """Return what any of the ranges covers. They may be in any order and overlap.

        All starts and all ends are sorted separately. Time is uncovered between the end number
        i and the start number i + 1 exactly if that start is later.
        """
        starts = sorted(chain.from_iterable(starts for starts, _ in several))
        ends = sorted(chain.from_iterable(ends for _, ends in several))
        if not starts:
            return cls()
        uncovered = list(map(lt, ends, islice(starts, 1, None)))
        if all(uncovered):
            return cls(starts, ends)
        return cls(
            [starts[0], *compress(islice(starts, 1, None), uncovered)],
            [*compress(ends, uncovered), ends[-1]],
        )

    def within(self, start: int, end: int) -> Self:
        """Return the parts inside `[start, end)`."""
        first = bisect_right(self.ends, start)
        last = bisect_left(self.starts, end)
        if first >= last:
            return type(self)()
        starts = list(self.starts[first:last])
        ends = list(self.ends[first:last])
        starts[0] = max(starts[0], start)
        ends[-1] = min(ends[-1], end)
        return type(self)(starts, ends)

    def gaps(self, start: int, end: int) -> Self:
        """Return the parts of `[start, end)` that no range covers."""
        covered = self.within(start, end)
        starts = [start, *covered.ends]
        ends = [*covered.starts, end]
        if starts[0] == ends[0]:
            del starts[0], ends[0]
        if starts and starts[-1] == ends[-1]:
            del starts[-1], ends[-1]
        return type(self)(starts, ends)

    def widened(self, before: int, after: int) -> Self:
        """Return the ranges with `before` added before each and `after` after each."""
        if not before and not after:
            return self
        return self.union(
            ([start - before for start in self.starts], [end + after for end in self.ends])
        )

    def at_least(self, length: int) -> Self:
        """Return the ranges that have at least this length."""
        long = [end - start >= length for start, end in zip(self.starts, self.ends, strict=True)]
        if all(long):
            return self
        return type(self)(list(compress(self.starts, long)), list(compress(self.ends, long)))
