"""Ranges of time as two sorted lists, which built-in functions combine fast."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import compress
from operator import lt, sub
from typing import NamedTuple, Self


class Ranges(NamedTuple):
    """Half-open ranges `[starts[i], ends[i])`, in order, that neither overlap nor touch."""

    starts: Sequence[int] = ()
    ends: Sequence[int] = ()

    @classmethod
    def union(cls, *several: tuple[Iterable[int], Iterable[int]]) -> Self:
        """Return what any of the ranges covers. They may be in any order and overlap."""
        starts, ends = _sorted(several)
        if not starts:
            return cls()
        later = starts[1:]
        uncovered = list(map(lt, ends, later))
        if all(uncovered):
            return cls(starts, ends)
        return cls([starts[0], *compress(later, uncovered)], [*compress(ends, uncovered), ends[-1]])

    @classmethod
    def gaps(cls, *several: tuple[Iterable[int], Iterable[int]], at_least: int = 1) -> Self:
        """Return what none of the ranges covers between the first start and the last end.

        They may be in any order and overlap. Gaps shorter than `at_least` are left out.
        """
        starts, ends = _sorted(several)
        del starts[:1]
        long = list(map(at_least.__le__, map(sub, starts, ends)))
        return cls(list(compress(ends, long)), list(compress(starts, long)))

    def within(self, start: int, end: int) -> Self:
        """Return the parts inside `[start, end)`."""
        if not self.starts or (start <= self.starts[0] and self.ends[-1] <= end):
            return self
        first = bisect_right(self.ends, start)
        last = bisect_left(self.starts, end)
        if first >= last:
            return type(self)()
        starts = list(self.starts[first:last])
        ends = list(self.ends[first:last])
        starts[0] = max(starts[0], start)
        ends[-1] = min(ends[-1], end)
        return type(self)(starts, ends)


def _sorted(several: Iterable[tuple[Iterable[int], Iterable[int]]]) -> tuple[list[int], list[int]]:
    """Return all starts and all ends, sorted separately.

    Time is uncovered between the end number i and the start number i + 1 exactly if that start is
    later.
    """
    all_starts: list[int] = []
    all_ends: list[int] = []
    for starts, ends in several:
        all_starts += starts
        all_ends += ends
    all_starts.sort()
    all_ends.sort()
    return all_starts, all_ends
