"""A user's model, whatever it is, as a BatchDevice."""

from __future__ import annotations

import sys
from typing import Any

from shmzero.errors import ConfigError
from shmzero.inference.device import BatchDevice
from shmzero.inference.function import FunctionDevice
from shmzero.shm.sizes import Widths


def make_model_device(
    model: Any, widths: Widths, max_batch: int, device: str, copy: bool = True, grad: bool = False
) -> BatchDevice:
    """The BatchDevice that serves a model: a torch module, a function of numpy arrays, or itself one.

    `copy` and `grad` are a module's: see ModuleDevice. Raises ConfigError for what cannot be served in these widths
    and on this device.
    """
    if hasattr(model, "launch") and hasattr(model, "staging"):
        _check_device(model, widths)
        served: BatchDevice = model
        return served
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from shmzero.inference.module import ModuleDevice  # which imports torch

        return ModuleDevice(model, widths, max_batch, device, copy, grad)
    if not callable(model):
        raise ConfigError(f"model is {model!r}; allowed: a torch module, or a function of (states, masks)")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device is {device!r}; a function of numpy arrays runs on the CPU: allowed are auto and cpu")
    return FunctionDevice(model, widths, max_batch)


def _check_device(device: Any, widths: Widths) -> None:
    """Raises ConfigError unless the arrays of a BatchDevice are those of the service."""
    for buffer in range(device.num_buffers):
        staging = device.staging(buffer)
        for name, width, dtype in (
            ("features", widths.state_dim, widths.wire), ("masks", widths.mask_words, "uint64"),
            ("policies", widths.action_dim, "float32"), ("values", widths.value_dim, "float32"),
        ):  # fmt: skip
            array = getattr(staging, name)
            flat = name == "masks" and width == 1 and array.shape == (device.max_batch,)
            if array.dtype != dtype or not (flat or array.shape == (device.max_batch, width)):
                raise ConfigError(
                    f"the device's {name} are {array.dtype} {list(array.shape)}; "
                    f"the service's widths and wire make that {dtype} {[device.max_batch, width]}"
                )
            if not array.flags.c_contiguous:
                raise ConfigError(f"the device's {name} are not contiguous")
