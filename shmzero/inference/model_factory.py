"""A user's model, whatever it is, as a BatchDevice."""

from __future__ import annotations

import sys
from typing import Any

from shmzero.errors import ConfigError
from shmzero.inference.function import FunctionDevice
from shmzero.inference.module import ModuleDevice


def device_of(
    model: Any,
    state_dim: int,
    action_dim: int,
    value_dim: int,
    wire: str,
    max_batch: int,
    device: str,
    copy: bool = True,
    grad: bool = False,
) -> Any:
    """The BatchDevice that serves a model: a torch module, a function of numpy arrays, or itself one.

    `copy` and `grad` are a module's: see ModuleDevice. Raises ConfigError for what cannot be served in these widths
    and on this device.
    """
    if hasattr(model, "launch") and hasattr(model, "staging"):
        _check_device(model, state_dim, action_dim, value_dim, wire)
        return model
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        return ModuleDevice(model, state_dim, action_dim, value_dim, wire, max_batch, device, copy, grad)
    if not callable(model):
        raise ConfigError(f"model is {model!r}; allowed: a torch module, or a function of (states, masks)")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device is {device!r}; a function of numpy arrays runs on the CPU: allowed are auto and cpu")
    return FunctionDevice(model, state_dim, action_dim, value_dim, wire, max_batch)


def _check_device(device: Any, state_dim: int, action_dim: int, value_dim: int, wire: str) -> None:
    """Check that the arrays of a BatchDevice are those of the service. Raises ConfigError."""
    words = (action_dim + 63) // 64
    for buffer in range(device.num_buffers):
        staging = device.staging(buffer)
        for name, width, dtype in (
            ("features", state_dim, wire), ("masks", words, "uint64"),
            ("policies", action_dim, "float32"), ("values", value_dim, "float32"),
        ):  # fmt: skip
            array = getattr(staging, name)
            flat = name == "masks" and words == 1 and array.shape == (device.max_batch,)
            if array.dtype != dtype or not (flat or array.shape == (device.max_batch, width)):
                raise ConfigError(
                    f"the device's {name} are {array.dtype} {list(array.shape)}; "
                    f"the service's widths and wire make that {dtype} {[device.max_batch, width]}"
                )
            if not array.flags.c_contiguous:
                raise ConfigError(f"the device's {name} are not contiguous")
