"""The trained network of a run folder, or of a checkpoint's file, as an evaluator."""

from __future__ import annotations

import os
import re
from pathlib import Path

from shmzero.errors import ConfigError
from shmzero.nets.evaluator import LoadedNetwork
from shmzero.settings import check_choice


def load_network(
    path: str | os.PathLike[str], *, device: str = "auto", precision: str = "auto", policy_only: bool = False
) -> LoadedNetwork:
    """A trained network as an evaluator for `search`, `play_rounds` and matches.

    path: a checkpoint (.safetensors), or the folder of a training run, which stands for its newest.
    device: auto (cuda where there is one), cpu, cuda or cuda:1. precision: auto (the fastest of the
    device), fp32, bf16 or fp16. policy_only: values are left out and are 0, which also takes networks
    whose values no search can use, those of whole games. Imports torch; runs in torch's own threads.
    Raises ConfigError where there is no such checkpoint or device.
    """
    check_choice("precision", precision, ("auto", "fp32", "bf16", "fp16"))
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise ConfigError(f"device is {device!r}; allowed: auto, cpu, cuda, cuda:1")
    from shmzero.runs.checkpoints import newest_checkpoint

    file = Path(path)
    if file.is_dir():
        newest = newest_checkpoint(file)
        if newest is None:
            raise ConfigError(f"folder {file} has no checkpoint; allowed: a training run with one, or its file")
        file = newest
    if not file.is_file():
        raise ConfigError(f"there is no checkpoint {file}; allowed: a .safetensors file, or a training run's folder")
    import torch

    if device in ("auto", "cuda"):
        device = "cuda:0" if device == "cuda" or torch.cuda.is_available() else "cpu"
    if device != "cpu" and int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {device!r}, and torch sees {torch.cuda.device_count()} CUDA devices here; "
            "allowed: one of them, or cpu"
        )
    return LoadedNetwork(file, device, precision, policy_only)
