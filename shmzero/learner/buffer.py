"""The replay buffer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shmzero import _core


class ReplayBuffer:
    """The newest rows of the records, N at most, in arrays that the core writes into."""

    def __init__(self, capacity: int, seat_seed: int = 0) -> None:
        self.capacity = capacity
        self.added = 0
        """Rows ever added."""
        self._seat_seed = seat_seed
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "features": ((capacity, _core.NUM_FEATURES), torch.float16),
            "masks": ((capacity,), torch.int64),
            "hands": ((capacity, _core.NUM_HANDS * _core.NUM_CARDS), torch.uint8),
            "silent": ((capacity,), torch.uint8),
            "actions": ((capacity,), torch.uint8),
            "utilities": ((capacity,), torch.float32),
            "policies": ((capacity, _core.NUM_ACTIONS), torch.float16),
            "seat_features": ((capacity, _core.NUM_FEATURES), torch.float16),
            "seat_utilities": ((capacity,), torch.float32),
            "tricks": ((capacity,), torch.uint8),
            "versions": ((capacity,), torch.int32),
        }
        self.tensors = {name: torch.zeros(shape, dtype=dtype, device="cpu") for name, (shape, dtype) in shapes.items()}
        unsigned = {torch.int64: "uint64", torch.int32: "uint32"}
        self._arrays = {
            name: t.numpy().view(unsigned[t.dtype]) if t.dtype in unsigned else t.numpy()
            for name, t in self.tensors.items()
        }

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(
        self,
        records: Sequence[bytes],
        outcomes: NDArray[np.float32] | None = None,
        seats: Sequence[int] | None = None,
    ) -> int:
        """Replay records into the buffer, over the oldest rows; returns the number of rows.

        `outcomes` [records, 8]: what each seat came to, instead of the utility of the round. `seats`: the
        one seat of each record whose decisions become rows (default: all).
        """
        rows = _core.replay_full_deal(
            records, self._arrays, self.added % self.capacity, self._seat_seed, outcomes, seats
        )
        self.added += rows
        return rows

    def sample(
        self, rows: int, generator: torch.Generator, device: str, names: Iterable[str] | None = None, redeals: int = 0
    ) -> dict[str, Tensor]:
        """A batch of the arrays `names` (default: all), drawn uniformly with replacement, on `device`.

        With `redeals` also, for each row in which seats have yet to bid, so many deals as likely as the true one:
        `redealt_rows` [K] int64, rows of the batch, and `redealt_hands` [K, 8 x 52] uint8.
        """
        places = torch.randint(len(self), (rows,), generator=generator, dtype=torch.int64, device="cpu")
        batch = {name: self.tensors[name].index_select(0, places) for name in names or self.tensors}
        if redeals:
            silent = self.tensors["silent"].index_select(0, places)
            seed = int(torch.randint(2**62, (1,), generator=generator, dtype=torch.int64, device="cpu"))
            dealt = _core.redeal(batch["hands"].numpy(), silent.numpy(), redeals, seed)
            batch["redealt_rows"], batch["redealt_hands"] = map(torch.from_numpy, dealt)
        if device != "cpu":
            batch = {name: t.pin_memory().to(device, non_blocking=True) for name, t in batch.items()}
        return batch
