"""The device of a network, by its checkpoint or its sizes."""

from __future__ import annotations

from typing import Any

import torch

from shmzero.inference.cpu import CpuNetDevice
from shmzero.inference.cuda import CudaNetDevice
from shmzero.inference.device import BatchDevice
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import check_searchable, load_checkpoint
from shmzero.nets.config import NetConfig


def make_net_device(spec: dict[str, Any]) -> BatchDevice:
    """The device of an inference process: its checkpoint's network, or a fresh one from the seed."""
    torch.set_num_threads(spec["threads"])
    searched = spec.get("searched")
    if spec["checkpoint"]:
        net = load_checkpoint(spec["checkpoint"])
        if searched:
            check_searchable(spec["checkpoint"])
    else:
        net = BlobNet(NetConfig(**spec["net"]), seed=spec["seed"])
    device: CpuNetDevice | CudaNetDevice
    how = (spec["precision"], spec["compile"], spec["max_batch"], searched)
    device = CpuNetDevice(net, *how) if spec["device"] == "cpu" else CudaNetDevice(net, spec["device"], *how)
    if spec.get("other"):
        device.seat_other(spec["other"])
    return device
