"""Checkpoints: a network's weights and sizes in a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.files import write_whole
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.config import NetConfig
from shmzero.nets.weights_file import in_names_of, opened, read_tensors

FORMAT = "shmzero-net-1"


def save_checkpoint(net: BlobNet, path: Path | str, utility: str = "points") -> None:
    """Write a checkpoint, whole or not at all. `utility`: what its values are of, see TrainConfig.

    Raises RecordError.
    """
    metadata = {
        "format": FORMAT,
        "net": json.dumps(asdict(net.config)),
        "features": str(_core.FEATURE_VERSION),
        "utility": utility,
    }
    write_tensors(Path(path), net.state_dict(), metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Raises RecordError."""
    on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_whole(path, safetensors.torch.save(on_cpu, metadata))


def check_searchable(path: Path | str) -> None:
    """Raises ConfigError for a checkpoint whose values a search, which ends in points, cannot use."""
    with opened(path, "checkpoint") as file:
        utility = (file.metadata() or {}).get("utility", "points")
    if utility != "points":
        raise ConfigError(
            f"checkpoint {path} has values of the {utility} of a game, and a search ends in points; "
            "allowed: its policy alone (:policy, --simulations 0, or policy_only=True)"
        )


def load_checkpoint(path: Path | str) -> BlobNet:
    """The network of a checkpoint. Raises ConfigError for anything that is not exactly one."""
    tensors, metadata = read_tensors(path, "checkpoint")
    if metadata.get("format") != FORMAT:
        raise ConfigError(f"checkpoint {path} has format {metadata.get('format')!r}; allowed: {FORMAT}")
    if metadata.get("features") != str(_core.FEATURE_VERSION):
        raise ConfigError(
            f"checkpoint {path} is of feature version {metadata.get('features')}; "
            f"this program computes version {_core.FEATURE_VERSION}"
        )
    try:
        net = BlobNet(NetConfig(**json.loads(metadata.get("net", ""))))
        net.load_state_dict(in_names_of(net.state_dict(), tensors))
    except (TypeError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300]
        raise ConfigError(f"checkpoint {path} does not fit its own description: {why}") from None
    broken = [name for name, t in net.state_dict().items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise ConfigError(f"checkpoint {path} holds numbers that are not finite, in {broken[0]}")
    return net
