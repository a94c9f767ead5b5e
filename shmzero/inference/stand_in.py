"""A device whose answers are a function of the row, in the place of a network."""

from __future__ import annotations

from typing import Any

import numpy as np

from shmzero.inference.device import Staging, new_staging


class RowFunctionDevice:
    """A stand-in for a network: answers are a function of the row alone (csrc/play/evaluate.h)."""

    num_buffers = 1

    def __init__(self, evaluate: Any, max_batch: int) -> None:
        self.max_batch = max_batch
        self._evaluate = evaluate
        self._staging = new_staging(max_batch)

    def staging(self, buffer: int) -> Staging:
        return self._staging

    def launch(self, buffer: int, rows: int) -> None:
        s = self._staging
        self._evaluate(s.features[:rows].view(np.uint16), s.masks[:rows], s.policies[:rows], s.values[:rows])

    def finished(self, buffer: int) -> bool:
        return True

    def wait(self, buffer: int) -> None:
        pass

    def swap(self, weights: Any) -> None:
        pass  # there are no weights

    def poll(self) -> str | None:
        return None
