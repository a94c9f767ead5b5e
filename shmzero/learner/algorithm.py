"""The learner's arithmetic: replay buffer, critic, losses, optimiser, state. No processes, no files of a run.

The critic sees every hand and is used here only: it values each legal action of a decision on the true
deal (a bid, with `redeals`, on equally likely ones as well), and the policy is moved towards what is
better *on average over the deals it cannot tell apart*.
That needs a loss linear in the advantage. Read next: losses.py, process.py (the process around it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shmzero import _core
from shmzero.learner.buffer import ReplayBuffer
from shmzero.learner.config import LearnerConfig
from shmzero.learner.critic import Critic
from shmzero.learner.losses import action_weights, calibration, loss_by_critic
from shmzero.learner.optimiser import Optimiser
from shmzero.learner.schedule import Schedule
from shmzero.nets.blob_net import FLOATS, BlobNet
from shmzero.nets.config import NETS
from shmzero.nets.masks import masked_softmax, unpack_masks
from shmzero.nets.precision import bf16_is_faster

METRICS = (
    "loss",
    "policy_loss",
    "value_loss",
    "critic_loss",
    "entropy",
    "gradient_norm",
    "utility_variance",
    "advantage",
    "value_slope",
    "value_bias",
)
"""What `Learner.step` returns, in order. `policy_loss`: with a critic what the policy leaves to the best action, as
the critic values them; else the cross entropy with the target. Losses of value and critic are mean squares, well below
`utility_variance` where they explain anything. `advantage` is its root mean square over the legal actions.
`value_slope`: of outcomes over values, 1 where the value is calibrated, less where it is too sure; `value_bias`:
mean value less mean outcome."""
REDEALT_ROWS_TO = 64
"""The critic is asked about redeals in multiples of so many rows."""
MOST_TRICKS = _core.NUM_CARDS // _core.MIN_PLAYERS


@dataclass(frozen=True)
class Valued:
    """A batch that the critic has valued and learned from."""

    batch: dict[str, Tensor]
    q: Tensor | None
    """[B, 52] before it learned from them, on average over the redeals; None without a critic."""
    loss: Tensor
    """Mean square of Q of the actions taken less the utility of their rounds."""


class Learner:
    """Networks, optimisers and exponential moving average.

    A `step` has two halves, which share no parameter, so that two threads can each do one: `critic_step`
    of a batch, and `policy_step` of the batch before.
    """

    def __init__(self, config: LearnerConfig, device: str, went_on: Callable[[], None] = lambda: None) -> None:
        """`went_on` is called within each step as well, which may take long; from both threads."""
        self.config = config
        self.device = device
        self._went_on = went_on
        net, seed = NETS[config.net], config.seed
        self.net = BlobNet(net, seed).to(device)
        self.ema = BlobNet(net, seed).to(device)
        self.ema.requires_grad_(False)
        self.critic: Critic | None = None
        if config.targets == "critic":
            self.critic = Critic(NETS[config.critic_net], config.most_players, seed + 1).to(device)
        self.tricks: nn.Linear | None = None
        """Tricks that the mover will win, from the policy's stream: to train by, never served."""
        if config.tricks_weight > 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 2)
                self.tricks = nn.Linear(net.width, MOST_TRICKS + 1, **FLOATS).to(device)
        # A search chooses by other probabilities than those of its target.
        self._weighs_actions = config.importance_cap > 1 and not config.searches
        own = ["hands", "actions"] if self.critic else ["policies"]
        own += ["policies"] if self.critic and self._weighs_actions else []
        own += ["tricks"] if self.tricks else []
        self.columns = ("features", "masks", "utilities", "seat_features", "seat_utilities", *own)
        """Arrays of the buffer that `step` reads."""
        self.steps = 0
        self.scaled = False
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        # The losses and the softmax stay in float32.
        fast = device != "cpu" or bf16_is_faster()
        autocast = ("bf16" if fast else "off") if config.autocast == "auto" else config.autocast
        dtype = torch.float16 if autocast == "fp16" else torch.bfloat16
        self._autocast = (torch.device(device).type, dtype, autocast != "off")
        self.optimiser = Optimiser([self.net, self.tricks], config, autocast == "fp16")
        self.critic_optimiser = Optimiser([self.critic], config, autocast == "fp16") if self.critic else None

    @property
    def skipped(self) -> int:
        """Optimiser steps whose gradient was not finite; they change nothing."""
        return self.optimiser.skipped + (self.critic_optimiser.skipped if self.critic_optimiser else 0)

    def measure_scale(self, buffer: ReplayBuffer) -> None:
        """Fix the input scale, 1 / standard deviation of each feature, from the first rows."""
        rows = buffer.tensors["features"][: len(buffer)].float()
        deviation = rows.std(dim=0)
        scale = torch.where(deviation > 0.02, 1.0 / deviation.clamp(min=0.02), torch.ones((), **FLOATS)).clamp(max=8.0)
        for module in (self.net, self.ema, self.critic):
            if module is not None:
                module.input_scale.copy_(scale)
        self.scaled = True

    def critic_values(self, batch: dict[str, Tensor]) -> Tensor:
        """Q [B, 52] of a batch's rows."""
        assert self.critic is not None
        with torch.autocast(*self._autocast):
            q: Tensor = self.critic(batch["features"].float(), batch["hands"])
        return q.float()

    def draw(self, buffer: ReplayBuffer) -> dict[str, Tensor]:
        """A batch for `step`."""
        redeals = self.config.redeals if self.critic else 0
        return buffer.sample(self.config.batch, self.generator, self.device, self.columns, redeals)

    def step(self, batch: dict[str, Tensor], schedule: Schedule) -> Tensor | None:
        """Both halves of a batch; returns METRICS as one tensor, or None where it was skipped."""
        return self.policy_step(self.critic_step(batch, schedule), schedule)

    def critic_step(self, batch: dict[str, Tensor], schedule: Schedule) -> Valued:
        """Value every action of a batch's rows, then learn from the utilities of those taken."""
        if self.critic_optimiser is None:
            return Valued(batch, None, torch.zeros((), dtype=torch.float32, device=self.device))
        q = self.critic_values(batch)
        self._went_on()
        averaged = self._over_deals(q.detach(), batch)
        self._went_on()
        taken = q.gather(1, batch["actions"].long()[:, None])[:, 0]
        errors = (taken - batch["utilities"]).square()
        config, loss = self.config, errors.mean()
        if self._weighs_actions:
            loss = (errors * action_weights(batch, config.random_moves, config.importance_cap)).mean()
        self.critic_optimiser.step(loss, schedule.critic_learning_rate)
        self._went_on()
        return Valued(batch, averaged, errors.mean().detach())

    @torch.no_grad()
    def _over_deals(self, q: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Q of the true deals, [B, 52], averaged with Q of the redeals.

        What the policy is to learn is an average over deals: the more of them go into one step, the less noise.
        Once everybody has bid, what they did makes some deals likelier than others, and only the true one is used.
        """
        rows = batch.get("redealt_rows")
        if rows is None or not len(rows):
            return q
        # On a CPU a kernel is made for each number of rows that comes up: few numbers instead of all.
        number, padding = len(rows), -len(rows) % REDEALT_ROWS_TO
        features = batch["features"][F.pad(rows, (0, padding))]
        hands = F.pad(batch["redealt_hands"], (0, 0, 0, padding))
        more = self.critic_values({"features": features, "hands": hands})[:number]
        deals = q.new_ones(len(q), 1).index_add_(0, rows, q.new_ones(number, 1))
        return q.index_add(0, rows, more) / deals

    def policy_step(self, valued: Valued, schedule: Schedule) -> Tensor | None:
        """Move policy and value; see `step`."""
        config, batch = self.config, valued.batch
        masks = unpack_masks(batch["masks"])
        value_rows = max(1, round(config.value_share * len(masks)))
        with torch.autocast(*self._autocast):
            features = batch["features"].float()
            stream = self.net.stream(features)
            logits = self.net.logits_of(features, stream)
            trick_logits = self.tricks(stream) if self.tricks else None
            values = self.net.values(batch["seat_features"][:value_rows].float())
        self._went_on()
        policies = masked_softmax(logits, masks)
        log_policies = torch.log(policies.clamp(min=1e-9))
        entropy = -(policies * log_policies).sum(dim=1).mean()
        value, utilities = values.float()[:, 0], batch["seat_utilities"][:value_rows]
        value_loss = F.mse_loss(value, utilities)
        if valued.q is not None:
            loss, policy_loss, advantage = loss_by_critic(
                policies, valued.q, masks, entropy, log_policies, schedule.entropy_weight, config.neurd_share
            )
        else:
            advantage = torch.zeros((), dtype=torch.float32, device=self.device)
            loss = policy_loss = -(batch["policies"].float() * log_policies).sum(dim=1).mean()
        loss = loss + config.value_weight * value_loss
        if trick_logits is not None:
            loss = loss + config.tricks_weight * F.cross_entropy(trick_logits.float(), batch["tricks"].long())
        norm = self.optimiser.step(loss, schedule.learning_rate)
        self._went_on()
        self.steps += 1
        if norm is None:
            return None
        self._follow_average()
        with torch.no_grad():
            variance = batch["utilities"].var(correction=0)
            slope, bias = calibration(value, utilities)
        return torch.stack(
            [loss, policy_loss, value_loss, valued.loss, entropy, norm, variance, advantage, slope, bias]
        ).detach()

    @torch.no_grad()
    def _follow_average(self) -> None:
        """Move the average of the weights towards them, in the first steps faster than later."""
        decay = min(self.config.ema, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1 - decay)
