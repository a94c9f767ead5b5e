"""How long a training run goes on: by its time, by its rounds, or by whichever ends first."""

from __future__ import annotations

import time

from shmzero.training.config import TrainLength


class Budget:
    """What a run may spend, and how much of it is spent."""

    def __init__(self, length: TrainLength, elapsed_before_s: float, started: float) -> None:
        """`elapsed_before_s`: seconds of earlier sessions; `started`: when this one began, by time.monotonic()."""
        self._length = length
        self._started = started
        self.elapsed_before_s = elapsed_before_s

    @property
    def elapsed_s(self) -> float:
        """Seconds trained, over all sessions."""
        return self.elapsed_before_s + time.monotonic() - self._started

    @property
    def _time_left_s(self) -> float | None:
        """Seconds until the learner has to end, negative after that; None in a run without a time."""
        length = self._length
        return None if length.minutes is None else 60 * length.minutes - length.closing_s - self.elapsed_s

    def done(self, rounds: int) -> float:
        """Share of the run that is done, 0 to 1, when there are so many rounds."""
        length = self._length
        shares = [0.0]
        if length.minutes is not None:
            shares.append((self.elapsed_s + length.closing_s) / (60 * length.minutes))
        if length.rounds is not None:
            shares.append(rounds / length.rounds)
        return min(max(shares), 1.0)

    def left_s(self, rounds: int, rounds_per_min: float) -> float | None:
        """Seconds to the end of the run at this rate, None where that cannot be said."""
        left, time_left_s = [], self._time_left_s
        if time_left_s is not None:
            left.append(max(time_left_s, 0.0))
        if self._length.rounds is not None and rounds_per_min > 0:
            left.append(max(self._length.rounds - rounds, 0) * 60 / rounds_per_min)
        return min(left, default=None)

    def ended_by_rounds(self, rounds: int) -> bool:
        """Whether all rounds are there and time is left: the learner may then learn from all of them."""
        wanted, time_left_s = self._length.rounds, self._time_left_s
        return wanted is not None and rounds >= wanted and (time_left_s is None or time_left_s > 0)
