"""A network's batches on CUDA: two in flight, a graph for each size of batch."""

from __future__ import annotations

import torch
from torch import Tensor

from shmzero import _core
from shmzero.errors import ConfigError, ModelFailed
from shmzero.inference.device import Staging
from shmzero.inference.net_device import NetDevice
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.compiled import ServingFunction

CUDA_BUCKETS = (64, 256, 1024, 4096, 8192, 16384)
"""Batch sizes that a CUDA graph is captured for. A CPU has no graphs."""


class CudaNetDevice(NetDevice):
    """Two batches in flight, each with a stream, static buffers and a graph per bucket of its own."""

    num_buffers = 2

    def __init__(
        self,
        net: BlobNet,
        device: str = "cuda:0",
        precision: str = "auto",
        compiled: bool = True,
        max_batch: int = 8192,
        searched: bool | None = None,
    ) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(f"device is {device!r}, and torch sees no CUDA here; allowed: cpu")
        index = int(device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise ConfigError(f"device is {device!r}; allowed: cuda:0 to cuda:{torch.cuda.device_count() - 1}")
        torch.cuda.set_device(index)
        torch.set_float32_matmul_precision("high")  # TF32
        super().__init__(net, device, precision, compiled, max_batch, searched)
        self.buckets = [b for b in CUDA_BUCKETS if b < max_batch] + [max_batch]
        self._buffers = [_CudaBuffer(device, max_batch) for _ in range(self.num_buffers)]

    def staging(self, buffer: int) -> Staging:
        return self._buffers[buffer].staging

    def launch(self, buffer: int, rows: int) -> None:
        at = self._buffers[buffer]
        bucket = next(b for b in self.buckets if b >= rows)  # padding rows hold an earlier batch's
        call = self.call()
        try:
            graph = at.graph(bucket, call, self.weights)
            with torch.cuda.stream(at.stream):
                at.features[:bucket].copy_(at.host_features[:bucket], non_blocking=True)
                at.masks[:bucket].copy_(at.host_masks[:bucket], non_blocking=True)
                graph.replay()
                if self._other is not None:
                    with torch.inference_mode():
                        self._answer_others(at.staging.masks[:rows], at.features, at.masks, at.policies, at.values)
                at.host_policies[:rows].copy_(at.policies[:rows], non_blocking=True)
                at.host_values[:rows].copy_(at.values[:rows], non_blocking=True)
                at.done.record(at.stream)
        except RuntimeError as error:
            raise ModelFailed(f"a batch of {rows} rows failed on {self.device}: {error}") from error

    def finished(self, buffer: int) -> bool:
        return bool(self._buffers[buffer].done.query())  # type: ignore[no-untyped-call]

    def wait(self, buffer: int) -> None:
        self._buffers[buffer].done.synchronize()

    def swap(self, path: str) -> None:
        # The graphs read these very buffers; the caller has nothing in flight.
        new = self.new_weights(path)
        torch.cuda.synchronize()
        for old, fresh in zip(self.weights, new, strict=True):
            old.copy_(fresh)
        torch.cuda.synchronize()


class _CudaBuffer:
    """The memory of one batch in flight, which the graphs read and write. They are captured on the serving thread."""

    def __init__(self, device: str, max_batch: int) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        shapes = [
            ((max_batch, _core.NUM_FEATURES), torch.float16),
            ((max_batch,), torch.int64),
            ((max_batch, _core.NUM_ACTIONS), torch.float32),
            ((max_batch, 1), torch.float32),
        ]
        host = [torch.zeros(shape, dtype=dtype, device="cpu").pin_memory() for shape, dtype in shapes]
        self.host_features, self.host_masks, self.host_policies, self.host_values = host
        self.features, self.masks, self.policies, self.values = (
            torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in shapes
        )
        self.staging = Staging(
            self.host_features.numpy(),
            self.host_masks.numpy().view("uint64"),
            self.host_policies.numpy(),
            self.host_values.numpy(),
        )
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}

    def graph(self, bucket: int, call: ServingFunction, weights: list[Tensor]) -> torch.cuda.CUDAGraph:
        """The graph of a bucket and callable, captured on first use."""
        key = (bucket, id(call))
        if key not in self._graphs:

            def body() -> None:
                policies, values = call(self.features[:bucket], self.masks[:bucket], *weights)
                self.policies[:bucket].copy_(policies)
                self.values[:bucket].copy_(values)

            with torch.inference_mode():
                torch.cuda.synchronize()
                with torch.cuda.stream(self.stream):
                    for _ in range(3):  # libraries allocate their workspaces before the capture
                        body()
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self.stream):
                    body()
                torch.cuda.synchronize()
            self._graphs[key] = graph
        return self._graphs[key]
