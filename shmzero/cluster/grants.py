"""Which node has which units: every unit is granted until it is finished, and taken once.

A grant is a job that may be done twice and counts once. What a node has when it is lost is granted again; what comes
from a node that has not been granted it, or comes a second time, is dropped. This module knows no Ray.
Read next: engine/units.py, whose units these are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shmzero.cluster.messages import Part
from shmzero.engine.units import Units
from shmzero.runs.recorder import Unit


class Grants:
    """The units of a run, and which engine has been granted each."""

    def __init__(self, fresh: Iterable[int], num_units: int, in_progress: Mapping[int, list[bytes]]) -> None:
        """See Units."""
        self._units = Units(fresh, num_units, in_progress)
        self._granted: dict[str, set[int]] = {}
        """Units that are not finished, by the engine that has been granted them."""
        self.num_dropped = 0
        """Records that were there already, or that nobody was asked for."""

    @property
    def left(self) -> int:
        """Units that are not finished."""
        return self._units.left

    @property
    def in_progress(self) -> dict[int, list[bytes]]:
        """Records of the rounds finished so far of games in progress."""
        return self._units.in_progress

    def num_granted(self, engine: str) -> int:
        """How many units an engine has."""
        return len(self._granted.get(engine, ()))

    def grant(self, engine: str, most: int) -> dict[int, list[bytes]]:
        """Up to `most` units for an engine, each with the records of its finished rounds.

        Where there are no more, an engine that has nothing to do gets half of what the one with most still has: who
        finishes a unit first is who has played it.
        """
        mine = self._granted.setdefault(engine, set())
        units = self._units.hand_out(most)
        if not units and not mine and most > 0:
            longest = max(self._granted.values(), key=len)
            units = sorted(longest)[: min(most, -(-len(longest) // 2))]
        mine.update(units)
        return {unit: self._units.in_progress.get(unit, []) for unit in units}

    def give_back(self, engine: str) -> int:
        """Let others have what an engine has not finished. Returns how many units these are.

        What it still sends is dropped.
        """
        units = self._granted.pop(engine, set()).difference(*self._granted.values())
        self._units.give_back(sorted(units))
        return len(units)

    def take(self, engine: str, part: Part) -> int:
        """Take what an engine has finished of a unit. Returns how many records were new."""
        granted = self._granted.get(engine, set())
        known = len(self._units.in_progress.get(part.unit, ()))
        new = part.records[known - part.first :] if part.first <= known else []
        if part.unit not in granted or not new:
            self.num_dropped += len(part.records)
            return 0
        for number, record in enumerate(new, start=1):
            self._units.add_record(part.unit, record, part.is_last and number == len(new))
        if part.is_last:
            for units in self._granted.values():
                units.discard(part.unit)
        return len(new)

    def take_finished(self) -> list[Unit]:
        """The units that were finished since the last call."""
        return self._units.take_finished()
