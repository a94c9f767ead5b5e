"""What answers rows: devices for the inference process, evaluators for this one.

Torch is imported only when a network is asked for. Read next: inference.py (the loop around a
device), net.py (the network behind one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shmzero import _core


@dataclass(frozen=True)
class Staging:
    """One batch's arrays, B = max_batch rows; pinned where the device is CUDA."""

    features: NDArray[Any]
    """[B, state_dim] of the wire's type; the engine's are float16 [B, 256]"""
    masks: NDArray[np.uint64]
    """[B] or [B, ceil(action_dim / 64)] legal actions; 0 asks for the value alone"""
    policies: NDArray[np.float32]
    """[B, action_dim]"""
    values: NDArray[np.float32]
    """[B, value_dim]"""


class BatchDevice(Protocol):
    """Runs batches. Driven by one thread: launch(stage) ... wait(stage), stages in turn."""

    num_stages: int
    """Batches that may be in flight at once."""
    max_batch: int

    def staging(self, stage: int) -> Staging: ...

    def launch(self, stage: int, rows: int) -> None:
        """Start on the first `rows` rows of the stage. Raises ModelFailed."""

    def finished(self, stage: int) -> bool:
        """Whether wait(stage) would return at once."""

    def wait(self, stage: int) -> None:
        """Until the stage's policies and values are there. Raises ModelFailed."""

    def swap(self, weights: Any) -> None:
        """Serve other weights (the path of a checkpoint, or what the device takes) from the next launch on.

        Only with nothing in flight. Raises ConfigError for what cannot be used; the old weights stay.
        """

    def poll(self) -> str | None:
        """Between batches: a chance to switch to a better callable. Returns a line about it."""


class OtherDevice(BatchDevice, Protocol):
    """Has a second network, which answers the rows whose mask has bit 63 set."""

    def seat_other(self, weights: Any) -> None:
        """Take this checkpoint for it. As `swap`, only with nothing in flight. Raises ConfigError."""


def new_staging(rows: int) -> Staging:
    """Arrays in ordinary memory, zeroed."""
    return Staging(
        np.zeros((rows, _core.NUM_FEATURES), np.float16),
        np.zeros(rows, np.uint64),
        np.zeros((rows, _core.NUM_ACTIONS), np.float32),
        np.zeros((rows, 1), np.float32),
    )


class RowFunctionDevice:
    """A stand-in for a network: answers are a function of the row alone (csrc/evaluate.h)."""

    num_stages = 1

    def __init__(self, evaluate: Any, max_batch: int) -> None:
        self.max_batch = max_batch
        self._evaluate = evaluate
        self._staging = new_staging(max_batch)

    def staging(self, stage: int) -> Staging:
        return self._staging

    def launch(self, stage: int, rows: int) -> None:
        s = self._staging
        self._evaluate(
            s.features[:rows].view(np.uint16), s.masks[:rows], s.policies[:rows], s.values[:rows]
        )

    def finished(self, stage: int) -> bool:
        return True

    def wait(self, stage: int) -> None:
        pass

    def swap(self, weights: Any) -> None:
        pass  # there are no weights

    def poll(self) -> str | None:
        return None


def make_device(spec: dict[str, Any]) -> BatchDevice:
    """The device that an inference process's spec asks for. Raises ConfigError."""
    if spec["evaluator"] == "hash":
        return RowFunctionDevice(_core.hash_evaluate, spec["max_batch"])
    if spec["evaluator"] == "uniform":
        return RowFunctionDevice(_core.uniform_evaluate, spec["max_batch"])
    from shmzero.net_device import make_net_device

    return make_net_device(spec)


class _RowEvaluator:
    """evaluate_many over a row function."""

    _evaluate: Any

    def evaluate_many(
        self, states: NDArray[np.float32], masks: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(policies [B, 52], values [B, 1]) of states [B, 256] and masks [B, 52]."""
        rows = new_staging(len(states))
        rows.features[:] = states
        rows.masks[:] = mask_words(masks)
        self._evaluate(rows.features.view(np.uint16), rows.masks, rows.policies, rows.values)
        return rows.policies, rows.values


class HashEvaluator(_RowEvaluator):
    """A policy and a value made of a hash of the row."""

    _evaluate = staticmethod(_core.hash_evaluate)


class UniformEvaluator(_RowEvaluator):
    """A uniform policy and the value 0."""

    _evaluate = staticmethod(_core.uniform_evaluate)


class NetEvaluator:
    """evaluate_many over a BlobNet, eagerly, in float32."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def evaluate_many(
        self, states: NDArray[np.float32], masks: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(policies [B, 52], values [B, 1]) of states [B, 256] and masks [B, 52]."""
        import torch

        with torch.inference_mode():
            rows = torch.as_tensor(states, dtype=torch.float32, device="cpu")
            policies, values = self.net.policy_value(rows, torch.as_tensor(masks, dtype=torch.bool, device="cpu"))
        return policies.numpy(), values.numpy()


def mask_words(masks: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """uint64 [B] out of bool [B, 52]."""
    bits = np.left_shift(np.uint64(1), np.arange(masks.shape[1], dtype=np.uint64))
    words: NDArray[np.uint64] = (np.asarray(masks, np.uint64) * bits).sum(axis=1, dtype=np.uint64)
    return words
