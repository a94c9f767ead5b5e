"""Networks as evaluators of this process, for search and play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmzero.game.masks import mask_words


class LoadedNetwork:
    """evaluate_many over a checkpoint's network, eagerly, in the numbers that an inference process takes."""

    def __init__(self, path: Path, device: str, precision: str, policy_only: bool) -> None:
        from shmzero.nets.checkpoint import check_searchable, load_checkpoint
        from shmzero.nets.inference_net import InferenceNet
        from shmzero.nets.precision import resolve_precision

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
