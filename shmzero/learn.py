"""The learner's arithmetic: replay buffer, critic, losses, optimiser, state. No processes, no files of a run.

The critic sees every hand and is used here only: it values each legal action of a decision on the true
deal (a bid, with `redeals`, on equally likely ones as well), and the policy is moved towards what is
better *on average over the deals it cannot tell apart*.
That needs a loss linear in the advantage. Read next: learner.py (the process), train.py (the run).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from shmzero import _core
from shmzero.config import NETS, NetConfig
from shmzero.errors import ConfigError, ModelFailed
from shmzero.net import FLOATS, BlobNet, Block, masked_softmax, write_tensors
from shmzero.net_device import bf16_is_faster
from shmzero.train_config import TrainConfig
from shmzero.weights_file import opened, read_tensors

FORMAT = "shmzero-learner-2"
METRICS = (
    "loss", "policy_loss", "value_loss", "critic_loss", "entropy", "gradient_norm", "utility_variance", "advantage",
    "value_slope", "value_bias",
)
"""What `Learner.step` returns, in order. `policy_loss`: with a critic what the policy leaves to the best action, by
the critic's word; else the cross entropy with the target. Losses of value and critic are mean squares, well below
`utility_variance` where they explain anything. `advantage` is its root mean square over the legal actions.
`value_slope`: of outcomes over values, 1 where the value is calibrated, less where it is too sure; `value_bias`:
mean value less mean outcome."""
MOST_SKIPPED = 20
REDEALT_ROWS_TO = 64
"""The critic is asked about redeals in multiples of so many rows."""
MOST_TRICKS = _core.NUM_CARDS // _core.MIN_PLAYERS


class ReplayBuffer:
    """The newest rows of the records, N at most, in arrays that the core writes into."""

    def __init__(self, capacity: int, seat_seed: int = 0) -> None:
        self.capacity = capacity
        self.added = 0
        """Rows ever added."""
        self._seat_seed = seat_seed
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "features": ((capacity, _core.NUM_FEATURES), torch.float16),
            "masks": ((capacity,), torch.int64),
            "hands": ((capacity, _core.NUM_HANDS * _core.NUM_CARDS), torch.uint8),
            "silent": ((capacity,), torch.uint8),
            "actions": ((capacity,), torch.uint8),
            "utilities": ((capacity,), torch.float32),
            "policies": ((capacity, _core.NUM_ACTIONS), torch.float16),
            "seat_features": ((capacity, _core.NUM_FEATURES), torch.float16),
            "seat_utilities": ((capacity,), torch.float32),
            "tricks": ((capacity,), torch.uint8),
            "versions": ((capacity,), torch.int32),
        }
        self.tensors = {name: torch.zeros(shape, dtype=dtype, device="cpu") for name, (shape, dtype) in shapes.items()}
        unsigned = {torch.int64: "uint64", torch.int32: "uint32"}
        self._arrays = {
            name: t.numpy().view(unsigned[t.dtype]) if t.dtype in unsigned else t.numpy()
            for name, t in self.tensors.items()
        }

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(
        self, records: Sequence[bytes], outcomes: NDArray[np.float32] | None = None,
        seats: Sequence[int] | None = None,
    ) -> int:
        """Replay records into the buffer, over the oldest rows; returns the number of rows.

        `outcomes` [records, 8]: what each seat came to, instead of the utility of the round. `seats`: the
        one seat of each record whose decisions become rows (default: all).
        """
        rows = _core.replay_full_deal(
            records, self._arrays, self.added % self.capacity, self._seat_seed, outcomes, seats
        )
        self.added += rows
        return rows

    def sample(
        self, rows: int, generator: torch.Generator, device: str, names: Iterable[str] | None = None, redeals: int = 0
    ) -> dict[str, Tensor]:
        """A batch of the arrays `names` (default: all), drawn uniformly with replacement, on `device`.

        With `redeals` also, for each row in which seats have yet to bid, so many deals as likely as the true one:
        `redealt_rows` [K] int64, rows of the batch, and `redealt_hands` [K, 8 x 52] uint8.
        """
        places = torch.randint(len(self), (rows,), generator=generator, dtype=torch.int64, device="cpu")
        batch = {name: self.tensors[name].index_select(0, places) for name in names or self.tensors}
        if redeals:
            silent = self.tensors["silent"].index_select(0, places)
            seed = int(torch.randint(2**62, (1,), generator=generator, dtype=torch.int64, device="cpu"))
            dealt = _core.redeal(batch["hands"].numpy(), silent.numpy(), redeals, seed)
            batch["redealt_rows"], batch["redealt_hands"] = map(torch.from_numpy, dealt)
        if device != "cpu":
            batch = {name: t.pin_memory().to(device, non_blocking=True) for name, t in batch.items()}
        return batch


def bits(words: Tensor) -> Tensor:
    """bool [..., 52] out of int64 words [...]."""
    places = torch.arange(_core.NUM_ACTIONS, dtype=torch.int64, device=words.device)
    return ((words[..., None] >> places) & 1).bool()


def action_weights(batch: dict[str, Tensor], random_moves: float, cap: float) -> Tensor:
    """How much each decision counts for the critic, [B], 1 in the mean: 1 / the probability of what was done,
    `cap` at most.

    What the policy hardly ever does is otherwise valued by how its usual choice turned out, and a choice that
    has become wrong stays.
    """
    chosen = batch["policies"].gather(1, batch["actions"].long()[:, None])[:, 0].float()
    probability = (1 - random_moves) * chosen + random_moves / bits(batch["masks"]).sum(dim=1).float()
    weights = (1 / probability).clamp(max=cap)
    return weights / weights.mean()


@torch.no_grad()
def push(
    policies: Tensor, log_policies: Tensor, left: Tensor, masks: Tensor, entropy_weight: float, share: float
) -> Tensor:
    """How far the log-probability of each action is to rise, [B, 52].

    It is the action's advantage, the entropy's included, times a weight: its probability, mixed to the `share`
    with one that is the same for all legal actions. `left` [B, 52]: what each action leaves to the best one.

    With probabilities alone this is the gradient of what the policy comes to, entropy included. That gradient
    vanishes where an action is nearly certain, and a choice that was wrong early stays. The mixture comes to rest
    where the gradient does, at softmax(Q / entropy_weight), and like it is linear in Q.
    """
    worth = -left - entropy_weight * log_policies
    advantages = (worth - (policies * worth).sum(dim=1, keepdim=True)) * masks
    uniform = masks.float() / masks.sum(dim=1, keepdim=True)
    return torch.lerp(policies, uniform, share) * advantages


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


@dataclass(frozen=True)
class Schedule:
    """What changes with the share of the run that is done."""

    learning_rate: float
    critic_learning_rate: float
    entropy_weight: float

    @staticmethod
    def at(config: TrainConfig, progress: float) -> Schedule:
        """The rates as a cosine to a hundredth after a short ramp; entropy linearly."""
        done = min(max(progress, 0.0), 1.0)
        ramp = min(1.0, (done + 1e-3) / 0.02)
        rate = ramp * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        first, last = config.entropy_first, config.entropy_last
        return Schedule(
            config.learning_rate * rate, config.critic_learning_rate * rate, first + (last - first) * done
        )


class Optimiser:
    """Fused AdamW over some modules, with clipping; a gradient that is not finite changes nothing."""

    def __init__(self, modules: Iterable[nn.Module | None], config: TrainConfig, scale_gradients: bool) -> None:
        """`scale_gradients`: the products are in float16, whose gradients would vanish."""
        self.parameters = [parameter for module in modules if module for parameter in module.parameters()]
        self.adam = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.skipped = 0
        """Steps whose gradient was not finite."""
        self._clip = config.clip
        self._in_a_row = 0
        self._scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=scale_gradients)

    def step(self, loss: Tensor, learning_rate: float) -> Tensor | None:
        """One step; the gradient's norm, None where it was skipped. Raises ModelFailed after many of those."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self.adam)
        norm = nn.utils.clip_grad_norm_(self.parameters, self._clip)
        if math.isfinite(float(norm)):
            self._in_a_row = 0
            self._scaler.step(self.adam)
            self._scaler.update()
            return norm
        self._scaler.update()
        self.adam.zero_grad(set_to_none=True)
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= MOST_SKIPPED:
            raise ModelFailed(
                f"{MOST_SKIPPED} batches in a row without a finite gradient; lower learning_rate, or set autocast = off"
            )
        return None

    def state(self) -> dict[str, Tensor]:
        """What `load` needs, by place of the parameter and name."""
        slots = self.adam.state_dict()["state"].items()
        return {f"{place}.{name}": t for place, slot in slots for name, t in slot.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, t in state.items():
            place, _, field = name.partition(".")
            slots.setdefault(int(place), {})[field] = t
        self.adam.load_state_dict({"state": slots, "param_groups": self.adam.state_dict()["param_groups"]})


@dataclass(frozen=True)
class Valued:
    """A batch that the critic has valued and learned from."""

    batch: dict[str, Tensor]
    q: Tensor | None
    """[B, 52] before it learned from them, on average over the redeals; None without a critic."""
    loss: Tensor
    """Mean square of Q less what came of the actions taken."""


class Learner:
    """Networks, optimisers and exponential moving average.

    A `step` has two halves, which share no parameter, so that two threads can each do one: `critic_step`
    of a batch, and `policy_step` of the batch before.
    """

    def __init__(self, config: TrainConfig, device: str, went_on: Callable[[], None] = lambda: None) -> None:
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
            most_players = config.self_play(0, None).play_settings().most_players
            self.critic = Critic(NETS[config.critic_net], most_players, seed + 1).to(device)
        self.tricks: nn.Linear | None = None
        """Tricks that the mover will win, from the policy's stream: to train by, never served."""
        if config.tricks_weight > 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 2)
                self.tricks = nn.Linear(net.width, MOST_TRICKS + 1, **FLOATS).to(device)
        # A search chooses by other probabilities than those of its target.
        self._weighs_actions = config.importance_cap > 1 and not config.searches()
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
        """Value every action of a batch's rows, then learn from what came of those taken."""
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
        config, batch, q = self.config, valued.batch, valued.q
        masks = bits(batch["masks"])
        value_rows = max(1, round(config.value_share * len(masks)))
        with torch.autocast(*self._autocast):
            features = batch["features"].float()
            stream = self.net.stream(features)
            logits = self.net.logits_of(features, stream)
            said = self.tricks(stream) if self.tricks else None
            values = self.net.values(batch["seat_features"][:value_rows].float())
        self._went_on()
        policies = masked_softmax(logits, masks)
        log_policies = torch.log(policies.clamp(min=1e-9))
        entropy = -(policies * log_policies).sum(dim=1).mean()
        value, came = values.float()[:, 0], batch["seat_utilities"][:value_rows]
        value_loss = F.mse_loss(value, came)
        if q is not None:
            # Linear in Q: a softmax over it would teach what only a clairvoyant can know.
            left = (q.masked_fill(~masks, -math.inf).amax(dim=1, keepdim=True) - q) * masks
            policy_loss = (policies * left).sum(dim=1).mean()
            with torch.no_grad():
                advantages = ((policies * left).sum(dim=1, keepdim=True) - left) * masks
                spread = (advantages.square().sum(dim=1) / masks.sum(dim=1)).mean().sqrt()
            pushes = push(policies, log_policies, left, masks, schedule.entropy_weight, config.neurd_share)
            moved = (pushes * log_policies).sum(dim=1).mean()
            aim = (policy_loss - schedule.entropy_weight * entropy).detach()
            loss = aim - (moved - moved.detach()) + config.value_weight * value_loss
        else:
            spread = torch.zeros((), dtype=torch.float32, device=self.device)
            policy_loss = -(batch["policies"].float() * log_policies).sum(dim=1).mean()
            loss = policy_loss + config.value_weight * value_loss
        if said is not None:
            loss = loss + config.tricks_weight * F.cross_entropy(said.float(), batch["tricks"].long())
        norm = self.optimiser.step(loss, schedule.learning_rate)
        self._went_on()
        self.steps += 1
        if norm is None:
            return None
        decay = min(config.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1 - decay)
            variance = batch["utilities"].var(correction=0)
            bias = value.mean() - came.mean()
            together = ((value - value.mean()) * (came - came.mean())).mean()
            slope = together / value.var(correction=0).clamp(min=1e-9)
        return torch.stack(
            [loss, policy_loss, value_loss, valued.loss, entropy, norm, variance, spread, slope, bias]
        ).detach()


def save_state(learner: Learner, path: Path, facts: dict[str, Any]) -> None:
    """Write everything that `load_state` needs to go on, and `facts` of the caller."""
    tensors = {f"net.{name}": t for name, t in learner.net.state_dict().items()}
    tensors |= {f"ema.{name}": t for name, t in learner.ema.state_dict().items()}
    if learner.critic is not None:
        tensors |= {f"critic.{name}": t for name, t in learner.critic.state_dict().items()}
    if learner.tricks is not None:
        tensors |= {f"tricks.{name}": t for name, t in learner.tricks.state_dict().items()}
    tensors |= {f"optimiser.{name}": t for name, t in learner.optimiser.state().items()}
    if learner.critic_optimiser is not None:
        tensors |= {f"critic_optimiser.{name}": t for name, t in learner.critic_optimiser.state().items()}
    tensors["generator"] = learner.generator.get_state()
    own = {"steps": learner.steps, "scaled": learner.scaled}
    metadata = {"format": FORMAT, "features": str(_core.FEATURE_VERSION), "facts": json.dumps(facts | own)}
    write_tensors(path, tensors, metadata)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a saved state. Raises ConfigError where the file is none."""
    with opened(path, "learner state") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT or metadata.get("features") != str(_core.FEATURE_VERSION):
        raise ConfigError(
            f"learner state {path} has format {metadata.get('format')!r}, features "
            f"{metadata.get('features')}; allowed: {FORMAT!r}, {_core.FEATURE_VERSION}"
        )
    facts: dict[str, Any] = json.loads(metadata["facts"])
    return facts


def load_state(learner: Learner, path: Path) -> dict[str, Any]:
    """Put a learner where it was saved; returns the caller's facts. Raises ConfigError."""
    facts = read_facts(path)
    tensors, _ = read_tensors(path, "learner state")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}

    try:
        learner.net.load_state_dict(part("net."))
        learner.ema.load_state_dict(part("ema."))
        if learner.critic is not None:
            learner.critic.load_state_dict(part("critic."))
        if learner.tricks is not None:
            learner.tricks.load_state_dict(part("tricks."))
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise ConfigError(f"learner state {path} is of other networks: {why}") from None
    learner.optimiser.load(part("optimiser."))
    if learner.critic_optimiser is not None:
        learner.critic_optimiser.load(part("critic_optimiser."))
    learner.generator.set_state(tensors["generator"])
    learner.steps, learner.scaled = facts["steps"], facts["scaled"]
    return facts
