"""A network fitted for a minute on searched rounds: for checks that a fresh network says nothing about.

Not training, which wants strength (a search without a network cannot teach much). Its outputs are as
sharp, and its values as different, as those of a network that has learned. Read next: bench.py.
"""

from __future__ import annotations

import numpy as np
import torch

from shmzero import SearchConfig, _core, play_rounds
from shmzero.game.masks import masks_of
from shmzero.mcts.evaluators import UniformEvaluator
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.config import NetConfig

BATCH = 512


def fitted_net(
    config: NetConfig,
    steps: int,
    *,
    rounds: int = 1000,
    lr: float = 2e-3,
    c_puct: float = 0.5,
    sharpness: float = 1.0,
    seed: int = 1,
) -> BlobNet:
    """The network after `steps` batches: policies on visit shares to the power `sharpness`; values on what
    rows of random seats came to. A function of its arguments."""
    search = SearchConfig(determinizations=4, simulations=60, c_puct=c_puct)
    rows = _core.replay(play_rounds(UniformEvaluator(), rounds, search, seed=seed))
    net = BlobNet(config, seed=seed)
    states, seat_states = (torch.from_numpy(rows[name].astype(np.float32)) for name in ("features", "seat_features"))
    masks = torch.from_numpy(masks_of(rows["masks"]))
    seat_values = torch.from_numpy(rows["seat_values"])
    targets = torch.from_numpy(rows["policies"]) ** sharpness
    targets /= targets.sum(dim=1, keepdim=True)
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        take = torch.randint(len(states), (BATCH,), generator=generator)
        policies, _ = net.policy_value(states[take], masks[take])
        _, values = net(seat_states[take])
        loss = -(targets[take] * torch.log(policies + 1e-9)).sum(dim=1).mean()
        loss = loss + 10.0 * ((values[:, 0] - seat_values[take]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()
