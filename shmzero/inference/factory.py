"""The device of an inference process: a network of ours, or what stands in for one.

A model of the user's becomes a device in model_factory.py.
"""

from __future__ import annotations

from shmzero import _core
from shmzero.inference.device import BatchDevice
from shmzero.inference.messages import DeviceSpec
from shmzero.inference.stand_in import RowFunctionDevice
from shmzero.processes.seam import replaceable


def make_device(spec: DeviceSpec) -> BatchDevice:
    """The device that a spec asks for. Raises ConfigError.

    Where SHMZERO_DEVICE names a function, that one makes it (processes/seam.py).
    """
    return replaceable(make_built_in_device, "SHMZERO_DEVICE")(spec)


def make_built_in_device(spec: DeviceSpec) -> BatchDevice:
    """One of our devices. Raises ConfigError."""
    if spec.evaluator == "hash":
        return RowFunctionDevice(_core.hash_evaluate, spec.max_batch)
    if spec.evaluator == "uniform":
        return RowFunctionDevice(_core.uniform_evaluate, spec.max_batch)
    return make_net_device(spec)


def make_net_device(spec: DeviceSpec) -> BatchDevice:
    """The device of a checkpoint's network, or of a fresh one from the seed. Raises ConfigError.

    It sets how many threads torch has, for the whole process.
    """
    import torch  # here: a process that serves a stand-in does without

    from shmzero.inference.cpu import CpuNetDevice
    from shmzero.inference.cuda import CudaNetDevice
    from shmzero.nets.blob_net import BlobNet
    from shmzero.nets.checkpoint import check_searchable, load_checkpoint

    torch.set_num_threads(spec.threads)
    if spec.checkpoint:
        net = load_checkpoint(spec.checkpoint)
        if spec.searched:
            check_searchable(spec.checkpoint)
    else:
        net = BlobNet(spec.net, seed=spec.seed)
    device: CpuNetDevice | CudaNetDevice
    how = (spec.precision, spec.compile, spec.max_batch, spec.searched)
    device = CpuNetDevice(net, *how) if spec.device == "cpu" else CudaNetDevice(net, spec.device, *how)
    if spec.other:
        device.seat_other(spec.other)
    return device
