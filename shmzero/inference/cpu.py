"""A network's batches on a CPU."""

from __future__ import annotations

import torch

from shmzero.errors import ModelFailed
from shmzero.inference.device import Staging, new_staging
from shmzero.inference.net_device import NetDevice
from shmzero.nets.blob_net import BlobNet

PAD_ROWS_TO = 8
PAD_FROM_ROWS = 128
"""Batches in bfloat16 of more rows than PAD_FROM_ROWS are padded to a multiple of PAD_ROWS_TO. oneDNN makes a kernel
for each number of rows that it meets, and one that is no multiple of its tile costs a tenth of the rate."""


class CpuNetDevice(NetDevice):
    """Runs a batch at once, in the calling thread and torch's own."""

    num_buffers = 1

    def __init__(
        self,
        net: BlobNet,
        precision: str = "auto",
        compiled: bool = True,
        max_batch: int = 512,
        searched: bool | None = None,
    ) -> None:
        super().__init__(net, "cpu", precision, compiled, max_batch, searched)
        self._staging = new_staging(max_batch)
        self._features = torch.from_numpy(self._staging.features)
        self._masks = torch.from_numpy(self._staging.masks.view("int64"))
        self._policies = torch.from_numpy(self._staging.policies)
        self._values = torch.from_numpy(self._staging.values)

    def staging(self, buffer: int) -> Staging:
        return self._staging

    def launch(self, buffer: int, rows: int) -> None:
        call = self.call()
        padded = rows
        if rows > PAD_FROM_ROWS and self.inference_net.dtype == torch.bfloat16:
            padded = min(-(-rows // PAD_ROWS_TO) * PAD_ROWS_TO, self.max_batch)  # with rows of an earlier batch
        try:
            with torch.inference_mode():
                policies, values = call(self._features[:padded], self._masks[:padded], *self.weights)
                self._policies[:rows].copy_(policies[:rows])
                self._values[:rows].copy_(values[:rows])
                marked = self._staging.masks[:rows]
                self._answer_others(marked, self._features, self._masks, self._policies, self._values)
        except RuntimeError as error:
            raise ModelFailed(f"a batch of {rows} rows failed on the CPU: {error}") from error

    def finished(self, buffer: int) -> bool:
        return True

    def wait(self, buffer: int) -> None:
        pass

    def swap(self, path: str) -> None:
        self.weights = self.new_weights(path)
