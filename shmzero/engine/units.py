"""The units of a fleet: which are still to be granted, which are in progress, which are finished.

A unit is a round, or with whole games a game of several. This module knows no processes.
Read next: engine/worker_pool.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from shmzero.runs.recorder import Unit


class Units:
    """Hands units out, takes their records back."""

    def __init__(self, fresh: Iterable[int], num_units: int, in_progress: Mapping[int, list[bytes]]) -> None:
        """`fresh` yields the ids to play, of which there are `num_units`."""
        self.in_progress = {unit: list(records) for unit, records in in_progress.items()}
        """Records of the rounds finished so far of games in progress: all that is needed to go on with them."""
        self.left = num_units
        """Units that are not finished."""
        self._fresh: Iterator[int] = iter(fresh)
        self._returned: deque[int] = deque()
        self._finished: list[Unit] = []  # kept until they are taken: an error on the way must not cost them

    def hand_out(self, most: int) -> list[int]:
        """Up to `most` units to be played; those that were given back come first."""
        units: list[int] = []
        while len(units) < most:
            unit = self._returned.popleft() if self._returned else next(self._fresh, None)
            if unit is None:
                break
            units.append(unit)
        return units

    def add(self, units: Mapping[int, list[bytes]]) -> None:
        """Take units to be handed out after those that are there, each with the records of its finished rounds."""
        for unit, records in units.items():
            self._returned.append(unit)
            if records:
                self.in_progress[unit] = list(records)
        self.left += len(units)

    def give_back(self, units: Iterable[int]) -> None:
        """Take back units that were handed out and will not be played where they are."""
        self._returned.extend(units)

    def add_record(self, unit: int, record: bytes, is_last: bool) -> None:
        """Take the next record of a unit; `is_last` says that the unit is finished with it."""
        if not is_last:
            self.in_progress.setdefault(unit, []).append(record)
            return
        self.left -= 1
        self._finished.append((unit, [*self.in_progress.pop(unit, []), record]))

    def take_finished(self) -> list[Unit]:
        """The units that were finished since the last call."""
        finished, self._finished = self._finished, []
        return finished
