"""The gate: which checkpoint self-play has, where a new one must first win against it.

It plays nothing itself. Read next: training/match_runner.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shmzero.matches.messages import MatchPlayed
from shmzero.matches.words import GATE
from shmzero.runs.checkpoints import checkpoint_path, newest_checkpoint

LEAST_WON = 1e-9
"""Points a round: by less a checkpoint wins against its equal, by rounding."""


class Gate:
    """Lets a checkpoint through that won its match beyond the interval of chance; the first needs no match."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the run's."""
        self.best: int | None = None
        """Step of the checkpoint that self-play has, None before the first."""
        self.best_version = 0
        """The version that an earlier session counted it as."""
        self._folder = folder
        self._tried: int | None = None

    def recall(self, lines: list[dict[str, Any]]) -> None:
        """Take up what the metrics of an earlier session hold."""
        passed = [line["gate"] for line in lines if "gate" in line]
        self.best, self.best_version = (passed[-1]["steps"], passed[-1]["version"]) if passed else (None, 0)

    def best_path(self) -> Path | None:
        """The file of the checkpoint that self-play has, None before the first."""
        return None if self.best is None else checkpoint_path(self._folder, self.best)

    def has_challenger(self) -> bool:
        """Whether the newest checkpoint has not been tried."""
        newest = newest_checkpoint(self._folder)
        return newest is not None and int(newest.stem) not in (self._tried, self.best)

    def try_challenger(self) -> Path | None:
        """The checkpoint that the newest one has to beat, to be played now; None where it needs no match."""
        newest = newest_checkpoint(self._folder)
        assert newest is not None, "there is no challenger"
        self._tried = int(newest.stem)
        if self.best is None:
            self.best = self._tried
            return None
        return self.best_path()

    def judge(self, match: MatchPlayed) -> None:
        """Let the checkpoint through that played this match, if it was one for the gate and was won."""
        if match.mode == GATE and match.low > LEAST_WON:
            self.best = match.steps
