"""The device that an inference process's spec asks for."""

from __future__ import annotations

from typing import Any

from shmzero import _core
from shmzero.inference.device import BatchDevice
from shmzero.inference.stand_in import RowFunctionDevice


def make_device(spec: dict[str, Any]) -> BatchDevice:
    """The device that an inference process's spec asks for. Raises ConfigError."""
    if spec["evaluator"] == "hash":
        return RowFunctionDevice(_core.hash_evaluate, spec["max_batch"])
    if spec["evaluator"] == "uniform":
        return RowFunctionDevice(_core.uniform_evaluate, spec["max_batch"])
    from shmzero.inference.net_factory import make_net_device

    return make_net_device(spec)
