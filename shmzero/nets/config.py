"""Sizes of the networks, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
