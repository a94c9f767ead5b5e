"""Sizes of the networks, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shmzero.settings import check_number, check_types


@dataclass(frozen=True)
class NetConfig:
    """Sizes of a BlobNet. `trunks` 2: policy and value have blocks of their own."""

    width: int = 256
    hidden: int = 1024
    blocks: int = 6
    trunks: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_number("width", self.width, 8, 4096)
        check_number("hidden", self.hidden, 8, 16384)
        check_number("blocks", self.blocks, 0, 64)
        check_number("trunks", self.trunks, 1, 2)


NetName = Literal["plan", "small", "quick"]
NETS: dict[NetName, NetConfig] = {
    "plan": NetConfig(),
    "small": NetConfig(width=128, hidden=256, blocks=3, trunks=2),
    "quick": NetConfig(width=128, hidden=64, blocks=2, trunks=2),
}
