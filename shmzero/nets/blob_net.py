"""BlobNet: the network of policy and value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shmzero import _core
from shmzero.nets.config import NetConfig
from shmzero.nets.masks import masked_softmax

FLOATS: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""What parameters are made of, whatever defaults of torch another library has set."""


class Block(nn.Module):
    """x + Ax, normalised, then x + W2 relu(W1 x), normalised: the attention of one token is a map."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width, **FLOATS)
        self.norm1 = nn.LayerNorm(width, **FLOATS)
        self.up = nn.Linear(width, hidden, **FLOATS)
        self.down = nn.Linear(hidden, width, **FLOATS)
        self.norm2 = nn.LayerNorm(width, **FLOATS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.mix(x))
        out: Tensor = self.norm2(x + self.down(F.relu(self.up(x))))
        return out


class BlobNet(nn.Module):
    """Policy over 52 actions and the expected utility of the row's own seat.

    Bids and cards have heads of their own, chosen by the row's phase. `input_scale` [256] is
    1/standard deviation of each feature, fixed in the checkpoint.
    """

    input_scale: Tensor

    def __init__(self, config: NetConfig | None = None, seed: int = 0) -> None:
        """Initialised from the seed alone; leaves torch's own random state as it was."""
        super().__init__()
        self.config = config or NetConfig()
        c = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inputs = nn.ModuleList(nn.Linear(_core.NUM_FEATURES, c.width, **FLOATS) for _ in range(c.trunks))
            self.trunks = nn.ModuleList(
                nn.ModuleList(Block(c.width, c.hidden) for _ in range(c.blocks)) for _ in range(c.trunks)
            )
            self.bids = nn.Linear(c.width, _core.NUM_ACTIONS, **FLOATS)
            self.cards = nn.Linear(c.width, _core.NUM_ACTIONS, **FLOATS)
            self.value = nn.Linear(c.width, 1, **FLOATS)
            with torch.no_grad():  # a fresh policy close to uniform, a fresh value close to 0
                for head in (self.bids, self.cards, self.value):
                    head.weight.mul_(0.3)
                    head.bias.zero_()
        self.register_buffer("input_scale", torch.ones(_core.NUM_FEATURES, **FLOATS))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [B, 52], values [B, 1]) of states [B, 256] float32."""
        streams = [self._stream(states, trunk) for trunk in range(self.config.trunks)]
        return self.logits_of(states, streams[0]), self.value(streams[-1])

    def logits(self, states: Tensor) -> Tensor:
        """The policy's logits [B, 52] alone."""
        return self.logits_of(states, self.stream(states))

    def stream(self, states: Tensor) -> Tensor:
        """What the policy's blocks make of states, [B, width]."""
        return self._stream(states, 0)

    def values(self, states: Tensor) -> Tensor:
        """The values [B, 1] alone."""
        values: Tensor = self.value(self._stream(states, self.config.trunks - 1))
        return values

    def _stream(self, states: Tensor, trunk: int) -> Tensor:
        x: Tensor = self.inputs[trunk](states * self.input_scale)
        for block in self.trunks[trunk]:  # type: ignore[attr-defined]
            x = block(x)
        return x

    def logits_of(self, states: Tensor, stream: Tensor) -> Tensor:
        """The policy's logits [B, 52] of states and their `stream`."""
        playing = states[:, _core.PLAYING_FEATURE, None] > 0.5
        return torch.where(playing, self.cards(stream), self.bids(stream))

    def policy_value(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """(policies [B, 52], values [B, 1]); the policy is zero where `masks` [B, 52] is false."""
        logits, values = self(states)
        return masked_softmax(logits, masks), values


def flops_per_row(config: NetConfig) -> int:
    """Multiplications and additions of the matrix products of one row."""
    c = config
    block = c.width * c.width + 2 * c.width * c.hidden
    trunk = _core.NUM_FEATURES * c.width + c.blocks * block
    return 2 * (c.trunks * trunk + c.width * (2 * _core.NUM_ACTIONS + 1))
