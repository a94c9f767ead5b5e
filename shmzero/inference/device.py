"""What the batch loop runs batches on: a BatchDevice and the arrays of its buffers. It imports no torch."""

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
    """[B] or [B, num_mask_words(action_dim)] legal actions; 0 asks for the value alone"""
    policies: NDArray[np.float32]
    """[B, action_dim]"""
    values: NDArray[np.float32]
    """[B, value_dim]"""


class BatchDevice(Protocol):
    """Runs batches. Each has a buffer from launch(buffer) to wait(buffer); one thread calls both, buffers in turn."""

    num_buffers: int
    """How many batches may be in flight at once."""
    max_batch: int

    def staging(self, buffer: int) -> Staging:
        """The arrays of a buffer: its rows are written and its answers read there."""

    def launch(self, buffer: int, rows: int) -> None:
        """Start to compute the first `rows` rows of the buffer. Raises ModelFailed."""

    def finished(self, buffer: int) -> bool:
        """Whether wait(buffer) would return at once."""

    def wait(self, buffer: int) -> None:
        """Wait until the buffer's policies and values are there. Raises ModelFailed."""

    def swap(self, weights: Any) -> None:
        """Serve other weights (the path of a checkpoint, or what the device takes) from the next launch on.

        Only with nothing in flight. Raises ConfigError for what cannot be used; the old weights stay.
        """

    def poll(self) -> str | None:
        """Switch to a better callable, if there is one now. Called between batches. Returns a line about it."""


class OtherDevice(BatchDevice, Protocol):
    """Has a second network, which answers the rows that are marked as its own (_core.OTHER_NETWORK)."""

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
