"""What answers rows: devices for the inference process, evaluators for this one.

Torch is imported only when a network is asked for. Read next: inference.py (the loop around a
device), net.py (the network behind one).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.config import check_choice
from shmzero.errors import ConfigError


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
        """Wait until the stage's policies and values are there. Raises ModelFailed."""

    def swap(self, weights: Any) -> None:
        """Serve other weights (the path of a checkpoint, or what the device takes) from the next launch on.

        Only with nothing in flight. Raises ConfigError for what cannot be used; the old weights stay.
        """

    def poll(self) -> str | None:
        """Switch to a better callable, if there is one now. Called between batches. Returns a line about it."""


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


class LoadedNetwork:
    """evaluate_many over a checkpoint's network, eagerly, in the numbers that an inference process takes."""

    def __init__(self, path: Path, device: str, precision: str, policy_only: bool) -> None:
        from shmzero.net import check_searchable, load_checkpoint
        from shmzero.net_device import InferenceNet, resolve_precision

        net = load_checkpoint(path)
        if not policy_only:
            check_searchable(path)
        self.path = path
        self.device = device
        self.policy_only = policy_only
        self.precision = resolve_precision(precision, device)
        self._serve = InferenceNet(net.config, self.precision, values=not policy_only)
        self._weights = self._serve.weights(net, device)

    def __repr__(self) -> str:
        return f"<LoadedNetwork {self.path} on {self.device} in {self.precision}>"

    def evaluate_many(
        self, states: NDArray[np.float32], masks: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(policies [B, 52], values [B, 1]) of states [B, 256] and masks [B, 52]."""
        import torch

        features = torch.from_numpy(np.asarray(states, np.float16)).to(self.device)
        words = torch.from_numpy(mask_words(masks).view(np.int64)).to(self.device)
        with torch.inference_mode():
            policies, values = self._serve(features, words, *self._weights)
        if self.policy_only:
            values = torch.zeros_like(values)
        return policies.cpu().numpy(), values.cpu().numpy()


def load_network(
    path: str | os.PathLike[str], *, device: str = "auto", precision: str = "auto", policy_only: bool = False
) -> LoadedNetwork:
    """A trained network as an evaluator for `search`, `play_rounds` and matches.

    path: a checkpoint (.safetensors), or the folder of a training run, which stands for its newest.
    device: auto (cuda where there is one), cpu, cuda or cuda:1. precision: auto (the fastest of the
    device), fp32, bf16 or fp16. policy_only: values are left out and are 0, which also takes networks
    whose values no search can use, those of whole games. Imports torch; runs in torch's own threads.
    Raises ConfigError where there is no such checkpoint or device.
    """
    check_choice("precision", precision, ("auto", "fp32", "bf16", "fp16"))
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise ConfigError(f"device is {device!r}; allowed: auto, cpu, cuda, cuda:1")
    from shmzero.records import newest_checkpoint

    file = Path(path)
    if file.is_dir():
        newest = newest_checkpoint(file)
        if newest is None:
            raise ConfigError(f"folder {file} has no checkpoint; allowed: a training run with one, or its file")
        file = newest
    if not file.is_file():
        raise ConfigError(f"there is no checkpoint {file}; allowed: a .safetensors file, or a training run's folder")
    import torch

    if device in ("auto", "cuda"):
        device = "cuda:0" if device == "cuda" or torch.cuda.is_available() else "cpu"
    if device != "cpu" and int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {device!r}, and torch sees {torch.cuda.device_count()} CUDA devices here; "
            "allowed: one of them, or cpu"
        )
    return LoadedNetwork(file, device, precision, policy_only)


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
