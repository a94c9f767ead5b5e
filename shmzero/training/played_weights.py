"""Which network self-play has in a training run, and who else holds seats.

Without a gate self-play gets whatever the learner publishes. With one it gets checkpoints that have beaten the one
it has (gate.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shmzero.engine.interface import Engine
from shmzero.game.bots import OLDER
from shmzero.learner.messages import WeightsPublished
from shmzero.runs.checkpoints import checkpoints, newest_version, remove_old_weights, weights_path
from shmzero.training.config import TrainConfig
from shmzero.training.gate import Gate

WEIGHTS_KEPT = 3
"""Published weights that stay on disk while nobody starts: one may be about to be read."""


class PlayedWeights:
    """The weights that self-play has, by their version."""

    def __init__(self, config: TrainConfig, folder: Path, gate: Gate) -> None:
        self._config = config
        self._folder = folder
        self._gate = gate
        self.version = gate.best_version if config.matches.gate else newest_version(folder)

    def path(self) -> Path | None:
        """The file that self-play starts with; None where it starts with a fresh network."""
        if self._config.matches.gate:
            return self._gate.best_path()
        return weights_path(self._folder, self.version) if self.version else None

    def publish(self, engine: Engine, event: WeightsPublished) -> None:
        """Hand what the learner published to self-play, where there is no gate; remove what nobody reads any more."""
        if not self._config.matches.gate:
            engine.publish(event.path, event.version)
        if engine.ready:
            remove_old_weights(self._folder, WEIGHTS_KEPT)

    def seat_older(self, engine: Engine) -> None:
        """Give the seats that are for older checkpoints to one of them, another each time."""
        saved = checkpoints(self._folder)
        if saved and self._config.seats.network() == OLDER:
            drawn = np.random.default_rng((self._config.seed, len(saved))).integers(len(saved))
            engine.seat_other(saved[int(drawn)])
