"""How rates and weights of a training change with its progress."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shmzero.learner.config import LearnerConfig


@dataclass(frozen=True)
class Schedule:
    """What changes with the share of the run that is done."""

    learning_rate: float
    critic_learning_rate: float
    entropy_weight: float

    @staticmethod
    def at(config: LearnerConfig, progress: float) -> Schedule:
        """The rates as a cosine to a hundredth after a short ramp; entropy linearly."""
        done = min(max(progress, 0.0), 1.0)
        ramp = min(1.0, (done + 1e-3) / 0.02)
        rate = ramp * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        first, last = config.entropy_first, config.entropy_last
        return Schedule(config.learning_rate * rate, config.critic_learning_rate * rate, first + (last - first) * done)
