"""What the devices of a network share: weights, what computes a batch, the second network."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.inference.compilation import Compilation
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import check_searchable, load_checkpoint
from shmzero.nets.compiled import ServingFunction
from shmzero.nets.inference_net import InferenceNet
from shmzero.nets.precision import resolve_precision


class NetDevice:
    """A network with its weights, whatever it runs on. CpuNetDevice and CudaNetDevice run the batches."""

    def __init__(
        self, net: BlobNet, device: str, precision: str, compiled: bool, max_batch: int, searched: bool | None
    ) -> None:
        """`searched`: whether a search reads the values, or None where that is not known.

        If no search does, values are left out; if one does, a checkpoint whose values are of games is refused.
        """
        self.max_batch = max_batch
        self._searched = searched
        self.device = device
        self.inference_net = InferenceNet(net.config, resolve_precision(precision, device), searched is not False)
        self.weights = self.inference_net.weights(net, device)
        self._other: tuple[InferenceNet, list[Tensor]] | None = None
        self.compilation = Compilation(self.inference_net, device, self.weights, wanted=compiled)
        self.description = f"{device} {self.inference_net.precision}, {self.compilation.description}"

    def call(self) -> ServingFunction:
        """What a batch is computed with: the compiled callable, or the function itself until there is one."""
        return self.compilation.callable or self.inference_net

    def poll(self) -> str | None:
        """Take up the compiled callable once it has appeared. Returns a line about it."""
        return self.compilation.poll(self.weights)

    def new_weights(self, path: str) -> list[Tensor]:
        """A checkpoint's weights for this network. Raises ConfigError where it is one of other sizes."""
        net = load_checkpoint(path)
        if self._searched:
            check_searchable(path)
        if net.config != self.inference_net.config:
            raise ConfigError(
                f"checkpoint {path} is a network of other sizes ({net.config}); "
                f"this run serves {self.inference_net.config}"
            )
        return self.inference_net.weights(net, self.device)

    def seat_other(self, path: str) -> None:
        """Have this checkpoint's network, of any sizes, answer the rows that carry its mark (_core.OTHER_NETWORK)."""
        net = load_checkpoint(path)
        serving = InferenceNet(net.config, self.inference_net.precision)
        self._other = serving, serving.weights(net, self.device)

    def _answer_others(
        self, marked: NDArray[np.uint64], features: Tensor, masks: Tensor, policies: Tensor, values: Tensor
    ) -> None:
        """Put the other network's answers in its rows. Until there is one, they keep this one's.

        `marked` [B] are the masks in this process's memory, `masks` the same on the device.
        """
        if self._other is None:
            return
        rows = _core.rows_of_other_network(marked)
        if len(rows) == 0:
            return
        places = torch.from_numpy(rows).to(self.device)
        net, weights = self._other
        found = net(features[places], masks[places], *weights)
        policies.index_copy_(0, places, found[0])
        values.index_copy_(0, places, found[1])
