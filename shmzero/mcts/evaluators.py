"""Evaluators that need no network: a hash of the row, and a uniform policy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.game.masks import mask_words


class _RowEvaluator:
    """evaluate_many over a row function."""

    _evaluate: Any

    def evaluate_many(
        self, states: NDArray[np.float32], masks: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(policies [B, 52], values [B, 1]) of states [B, 256] and masks [B, 52]."""
        features = np.empty((len(states), _core.NUM_FEATURES), np.float16)
        features[:] = states
        policies = np.empty((len(states), _core.NUM_ACTIONS), np.float32)
        values = np.empty((len(states), 1), np.float32)
        self._evaluate(features.view(np.uint16), mask_words(masks), policies, values)
        return policies, values


class HashEvaluator(_RowEvaluator):
    """A policy and a value made of a hash of the row."""

    _evaluate = staticmethod(_core.hash_evaluate)


class UniformEvaluator(_RowEvaluator):
    """A uniform policy and the value 0."""

    _evaluate = staticmethod(_core.uniform_evaluate)
