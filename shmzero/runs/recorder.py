"""Keeps what an executor finishes: every round that a run plays gets into its folder through here.

An executor plays units, which are rounds or whole games. The one of this machine is engine/fleet.py; another one, of
many machines, only has to keep what Executor promises. The recorder knows no processes, and an executor no files.
Read next: record_writer.py.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

from shmzero.runs.metrics import Board
from shmzero.runs.record_writer import RecordWriter

Unit = tuple[int, list[bytes]]
"""A unit's id, and the records of its rounds in order."""
COMMIT_S = 0.5
MOST_WAITING = 10_000
"""Units that wait to be committed at most, however short the time."""


class Executor(Protocol):
    """Plays the units that it is given, some of them perhaps from the round on where they were left.

    It promises that each unit is returned once, by `poll` or `close`, when its last round is finished: with the
    records of all its rounds in order, first those it was given. What it plays of a unit depends on nothing but the
    run's settings, the unit's id and the network: a unit that is lost with a process may be played again.
    Errors are raised by `poll`; `close` may follow, and returns what was finished before. Use it from one thread.
    """

    @property
    def in_progress(self) -> Mapping[int, list[bytes]]:
        """Records of the finished rounds of games that are not finished. It changes within `poll` and `close` only."""

    @property
    def done(self) -> bool:
        """Whether every unit was returned."""

    def poll(self, timeout_s: float) -> list[Unit]:
        """Units that were finished since the last call. Waits at most so long for something to happen."""

    def close(self) -> list[Unit]:
        """Stop playing, and return what was finished since the last call of `poll`."""


class Recorder:
    """Commits what an executor finishes, every so often, and knows what is left to play."""

    def __init__(
        self,
        writer: RecordWriter,
        units: range,
        grain: Literal["round", "unit"] = "round",
        commit_s: float = COMMIT_S,
        committed: Callable[[list[Unit]], None] = lambda units: None,
        board: Board | None = None,
    ) -> None:
        """`units` are those that the folder is to hold in the end.

        With `grain` "round" the rounds of a game are committed as they are finished, with "unit" all together.
        `committed` is called with units that are finished, once they are committed. A `board` gets the metrics as
        well. Raises RecordError where the folder's records cannot be read.
        """
        self.units = units
        self.writer = writer
        self.ledger = writer.units()
        """The units that are whole and committed."""
        found = writer.in_progress() if grain == "round" else {}
        self.in_progress: Mapping[int, list[bytes]] = {unit: found[unit] for unit in found if unit in units}
        """Games that an executor is to go on with, and the records of their rounds so far."""
        self.rounds_before = self.rounds = writer.count()
        """Rounds that the folder holds: before, and now."""
        self.finished_units = 0
        """Units that were finished since."""
        self.record_bytes = 0
        """Size of the records that were committed since."""
        self._grain = grain
        self._commit_s = commit_s
        self._committed_at = time.monotonic()
        self._tell = committed
        self._board = board
        self._waiting: list[Unit] = []
        self._known = {unit: len(records) for unit, records in self.in_progress.items()}
        """Of how many rounds the records are committed, by game in progress."""

    # --- what is left to play -------------------------------------------------------------------------

    def num_missing(self) -> int:
        """How many of the units are not finished."""
        there = self.ledger.count_below(self.units.stop) - self.ledger.count_below(self.units.start)
        return len(self.units) - there

    def missing(self) -> Iterator[int]:
        """Ids of the units that are not finished when their turn comes, ascending; also of games in progress."""
        return itertools.takewhile(lambda unit: unit in self.units, self.ledger.missing(self.units.start))

    # --- what is played -------------------------------------------------------------------------------

    @property
    def new_rounds(self) -> int:
        """Rounds that were committed since this recorder began."""
        return self.rounds - self.rounds_before

    def waiting_rounds(self) -> int:
        """Rounds that are to be committed and are not yet."""
        return sum(len(records) for _, records in self._uncommitted())

    def poll(self, executor: Executor, timeout_s: float) -> None:
        """Take what the executor has finished, and commit it where that is due. Raises what the executor raises, and
        RecordError."""
        self._take(executor.poll(timeout_s), executor)
        if time.monotonic() - self._committed_at >= self._commit_s or len(self._waiting) >= MOST_WAITING:
            self.commit()

    def finish(self, executor: Executor) -> None:
        """Close the executor, and have everything that it has finished committed and on the disk. Raises RecordError.

        What it leaves in progress is kept for the next executor.
        """
        self._take(executor.close(), executor)
        self.commit()
        self.sync()

    def commit(self) -> None:
        """Commit what waits. Raises RecordError; it waits on then."""
        new = [unit for unit in self._uncommitted() if unit[1]]
        if new:
            self.rounds += self.writer.write(new)
            self.record_bytes += sum(len(record) for _, records in new for record in records)
        whole, self._waiting = self._waiting, []
        for unit, _ in whole:
            self.ledger.add(unit)
        if self._grain == "round":
            self._known = {unit: len(records) for unit, records in self.in_progress.items()}
        self._committed_at = time.monotonic()
        if whole:
            self._tell(whole)

    def _take(self, finished: list[Unit], executor: Executor) -> None:
        self._waiting += finished
        self.finished_units += len(finished)
        self.in_progress = executor.in_progress

    def _uncommitted(self) -> Iterator[Unit]:
        """Units with their rounds that are to be committed, of which there may be none."""
        games = self.in_progress.items() if self._grain == "round" else ()
        for unit, records in itertools.chain(self._waiting, games):
            yield unit, records[self._known.get(unit, 0) :]

    # --- the folder -----------------------------------------------------------------------------------

    def log(self, line: dict[str, Any], steps: int = 0) -> None:
        """Add a line to the metrics; `steps`: of the learner by now. Raises RecordError."""
        self.writer.folder.append_metrics(line)
        if self._board is not None:
            self._board.add(line, steps)

    def sync(self) -> None:
        """Have what is committed on the disk. Raises RecordError."""
        self.writer.sync()

    def close(self) -> None:
        """Commit what waits and have it on the disk. Raises RecordError."""
        if self._board is not None:
            self._board.close()
        self.commit()
        self.sync()
