"""Counts children that died, and ends a run in which too many do."""

from __future__ import annotations

import time
from collections import deque

from shmzero.errors import WorkerDied
from shmzero.processes.child import Child

MOST_DEATHS = 5
DEATH_WINDOW_S = 60.0
"""A run ends after MOST_DEATHS deaths of children within DEATH_WINDOW_S, or in a row with nothing done in between."""


class Deaths:
    """Counts children that ended and are replaced."""

    def __init__(self) -> None:
        self.total = 0
        self._times: deque[float] = deque()
        self._in_a_row = 0

    def went_on(self) -> None:
        """Note that work was finished: the next death is the first in a row."""
        self._in_a_row = 0

    def count(self, what: str, child: Child) -> str:
        """A line about `child`, which has ended.

        Raises WorkerDied for the MOST_DEATHS-th within DEATH_WINDOW_S, or in a row.
        """
        now = time.monotonic()
        self._times.append(now)
        self._in_a_row += 1
        while now - self._times[0] > DEATH_WINDOW_S:
            self._times.popleft()
        words, status = child.last_words(), child.status
        if len(self._times) >= MOST_DEATHS or self._in_a_row >= MOST_DEATHS:
            span = f"within {DEATH_WINDOW_S:g} s" if len(self._times) >= MOST_DEATHS else "with nothing done in between"
            raise WorkerDied(
                f"{what} ended with status {status}, the {MOST_DEATHS}th death of a child {span}; "
                f"its last words:\n{words}"
            )
        self.total += 1
        return f"{what} ended with status {status} and is replaced: {words.splitlines()[-1]}"
