"""Which units of a run are finished: what a run that goes on leaves out. It knows no files and no processes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class UnitLedger:
    """Which units are finished, as ranges without gaps: few even after millions of units."""

    def __init__(self, finished: Iterable[int] = ()) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []
        """The unit after the last one of range i."""
        for unit in finished:
            self.add(unit)

    def add(self, unit: int) -> None:
        at = bisect_right(self._firsts, unit)
        end = self._ends[at - 1] if at else -1
        if unit < end:
            return
        before, after = unit == end, at < len(self._firsts) and self._firsts[at] == unit + 1
        if before and after:
            self._ends[at - 1] = self._ends.pop(at)
            del self._firsts[at]
        elif before:
            self._ends[at - 1] = unit + 1
        elif after:
            self._firsts[at] = unit
        else:
            self._firsts.insert(at, unit)
            self._ends.insert(at, unit + 1)

    def count_below(self, limit: int) -> int:
        """How many of the units 0..limit - 1 are finished."""
        ranges = zip(self._firsts, self._ends, strict=True)
        return sum(max(0, min(end, limit) - first) for first, end in ranges)

    def missing(self, first: int = 0) -> Iterator[int]:
        """Units from `first` on that are not finished when their turn comes, without end, by ascending id."""
        unit = first
        while True:
            at = bisect_right(self._firsts, unit)
            if at:
                unit = max(unit, self._ends[at - 1])
            yield unit
            unit += 1
