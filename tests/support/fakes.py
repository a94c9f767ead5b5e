"""Evaluators for tests: answers that are known beforehand instead of a network's.

All of them speak the one interface: `evaluate_many(states f32 [B,256], masks bool [B,52]) -> (policies f32 [B,52], values f32 [B,1])`.
A row's value is the expected utility of the seat whose row it is; a row with an empty mask gets a policy of zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def over_legal(weights: NDArray[Any], masks: Bools) -> Floats:
    """Rows of positive weights, restricted to legal actions and scaled to sum 1; zeros where nothing is legal."""
    weights = np.where(masks, weights, 0.0)
    totals = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, totals, out=np.zeros_like(weights, dtype=np.float64), where=totals > 0).astype(np.float32)


class UniformEvaluator:
    """Every legal action alike, every position worth `value`."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def evaluate_many(self, states: Floats, masks: Bools) -> tuple[Floats, Floats]:
        return over_legal(np.ones(masks.shape), masks), np.full((len(states), 1), self.value, np.float32)


class HashEvaluator:
    """Answers that look random and depend on nothing but the row (not on the batch), the same in every process."""

    def __init__(self, salt: int = 0) -> None:
        rng = np.random.Generator(np.random.PCG64(salt))
        self.weights = rng.integers(1, 2**63, size=(256,), dtype=np.uint64) | np.uint64(1)
        self.action_salts = rng.integers(1, 2**63, size=(52,), dtype=np.uint64)

    def evaluate_many(self, states: Floats, masks: Bools) -> tuple[Floats, Floats]:
        bits = np.ascontiguousarray(states, np.float32).view(np.uint32).astype(np.uint64)
        with np.errstate(over="ignore"):
            keys = _mixed((bits * self.weights).sum(axis=1, dtype=np.uint64))
            draws = _mixed(keys[:, None] ^ self.action_salts[None, :])
        weights = 1.0 + (draws >> np.uint64(48)).astype(np.float64) / 2**13  # 1..9
        values = (keys >> np.uint64(40)).astype(np.float64) / 2**24
        return over_legal(weights, masks), values.astype(np.float32)[:, None]


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


@dataclass
class RecordingEvaluator:
    """Passes every batch on and keeps what went in and what came out."""

    inner: Any
    batches: list[tuple[Floats, Bools, Floats, Floats]] = field(default_factory=list)

    def evaluate_many(self, states: Floats, masks: Bools) -> tuple[Floats, Floats]:
        states, masks = np.array(states, np.float32), np.array(masks, bool)
        policies, values = self.inner.evaluate_many(states, masks)
        self.batches.append((states, masks, np.array(policies), np.array(values)))
        return policies, values

    @property
    def rows(self) -> int:
        return sum(len(batch[0]) for batch in self.batches)

    def seen(self) -> list[tuple[bytes, bytes]]:
        """Every row asked for as (features, mask) bytes, in order."""
        return [
            (s.tobytes(), m.tobytes())
            for states, masks, _, _ in self.batches
            for s, m in zip(states, masks, strict=True)
        ]


@dataclass
class ScriptedEvaluator:
    """`policy(state, mask) -> weights [52]` and `value(state) -> float` decide; a raised exception comes out unchanged."""

    policy: Callable[[Floats, Bools], NDArray[Any]] = lambda state, mask: np.ones(52)
    value: Callable[[Floats], float] = lambda state: 0.0

    def evaluate_many(self, states: Floats, masks: Bools) -> tuple[Floats, Floats]:
        weights = np.stack([self.policy(s, m) for s, m in zip(states, masks, strict=True)])
        values = np.array([[self.value(s)] for s in states], np.float32)
        return over_legal(weights, masks), values
