"""The critic: a network that sees all hands and values every action."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shmzero import _core
from shmzero.nets.blob_net import FLOATS, Block
from shmzero.nets.config import NetConfig


class Critic(nn.Module):
    """Utility of the mover after each action, from the full deal. Lives in the learner only."""

    input_scale: Tensor

    def __init__(self, config: NetConfig, num_hands: int = _core.NUM_HANDS, seed: int = 0) -> None:
        """`num_hands`: as many as the largest table has players."""
        super().__init__()
        self.num_hands = num_hands
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            columns = _core.NUM_FEATURES + num_hands * _core.NUM_CARDS
            self.read = nn.Linear(columns, config.width, **FLOATS)
            self.blocks = nn.Sequential(*(Block(config.width, config.hidden) for _ in range(config.blocks)))
            self.bids = nn.Linear(config.width, _core.NUM_ACTIONS, **FLOATS)
            self.cards = nn.Linear(config.width, _core.NUM_ACTIONS, **FLOATS)
            with torch.no_grad():
                for head in (self.bids, self.cards):
                    head.weight.mul_(0.3)
                    head.bias.zero_()
        self.register_buffer("input_scale", torch.ones(_core.NUM_FEATURES, **FLOATS))

    def forward(self, features: Tensor, hands: Tensor) -> Tensor:
        """Q [B, 52] of the mover's features [B, 256] and the hands [B, H x 52] that it does not see: the undealt cards
        and those of the next seats."""
        hidden = hands[:, : self.num_hands * _core.NUM_CARDS].to(features.dtype)
        # Two products instead of one of both inputs side by side, which would have to be copied.
        known, rest = self.read.weight[:, : _core.NUM_FEATURES], self.read.weight[:, _core.NUM_FEATURES :]
        x = F.linear(features * self.input_scale, known, self.read.bias) + F.linear(hidden, rest)
        x = self.blocks(x)
        playing = features[:, _core.PLAYING_FEATURE, None] > 0.5
        q: Tensor = torch.where(playing, self.cards(x), self.bids(x))
        return q
