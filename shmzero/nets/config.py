"""Sizes of the networks by name, and which network plays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from shmzero.errors import ConfigError
from shmzero.settings import Settings, setting


@dataclass(frozen=True)
class NetConfig(Settings):
    """Sizes of a BlobNet. `trunks` 2: policy and value have blocks of their own."""

    width: int = setting(256, low=8, high=4096)
    hidden: int = setting(1024, low=8, high=16384)
    blocks: int = setting(6, low=0, high=64)
    trunks: int = setting(1, low=1, high=2)


NetName = Literal["plan", "small", "quick"]
NETS: dict[NetName, NetConfig] = {
    "plan": NetConfig(),
    "small": NetConfig(width=128, hidden=256, blocks=3, trunks=2),
    "quick": NetConfig(width=128, hidden=64, blocks=2, trunks=2),
}


@dataclass(frozen=True)
class FreshNet(Settings):
    """The sizes of a network that begins anew."""

    title: ClassVar[str] = "network"

    net: NetName = setting("plan", usual=True)
    """Sizes of a fresh network."""


@dataclass(frozen=True)
class NetSource(FreshNet):
    """Where the network that plays or is served comes from."""

    checkpoint: Path | None = setting(None, free=True, usual=True)
    """Weights (.safetensors). Without them a network of ours is freshly initialised."""
    follow: bool = setting(False, free=True)
    """Take up the checkpoint file's new weights whenever it is replaced."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        if self.follow and self.checkpoint is None:
            raise ConfigError("follow is set without a checkpoint; allowed: with --checkpoint FILE")
