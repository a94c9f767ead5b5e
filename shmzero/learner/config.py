"""Settings of the learner: defaults and what is allowed. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.machine import check_cuda
from shmzero.nets.config import FreshNet, NetName
from shmzero.settings import Settings, setting


@dataclass(frozen=True)
class Learning(FreshNet):
    """What is learned and how; a run keeps to it."""

    title: ClassVar[str] = "learning"

    utility: Literal["points", "win"] = setting("points", usual=True)
    """What is learned: the points of a round, or, in whole games, the share of the win of the game."""
    targets: Literal["critic", "visits", "improved"] = setting("critic", usual=True)
    """What the policy learns from: a critic that sees the deal, or of the search the visit counts or the
    prior improved by Q."""
    critic_net: NetName = "quick"
    """Sizes of the critic, one trunk; critic targets only."""
    buffer: int = setting(150_000, low=1024, high=10**9)
    """Newest positions, which batches are drawn from."""
    batch: int = setting(512, low=1, high=2**20)
    """Positions of a step: in a short run many small steps are worth more than few large ones."""
    replay_ratio: float = setting(2.0, low=0.01, high=100)
    """How often a position is seen on average; the faster of self-play and learner waits."""
    learning_rate: float = setting(1e-3, low=1e-8, high=1)
    """At first; falls to a hundredth as a cosine over the run. At twice this rate deep networks
    collapse: their output stops depending on the input."""
    critic_learning_rate: float = setting(2e-3, low=1e-8, high=1)
    """The critic's, likewise; critic targets only."""
    importance_cap: float = setting(10.0, low=1, high=1e6)
    """A decision counts for the critic by 1 / the probability of the action taken, at most this; 1: all count the
    same, as they do where self-play searches. Critic targets only."""
    redeals: int = setting(0, low=0, high=1000)
    """Where seats have yet to bid, the critic's word is averaged over the true deal and so many that were as likely:
    these seats' cards and the undealt ones are dealt anew. Critic targets only."""
    neurd_share: float = setting(0.0, low=0, high=1)
    """How far the policy's gradient weighs all legal actions alike instead of by their probabilities: 0 is the policy
    gradient, 1 forgets a choice that was nearly certain as soon as any other, in the manner of neural replicator
    dynamics (Hennes et al. 2020). Critic targets only."""
    weight_decay: float = setting(1e-4, low=0, high=1)
    """Weight decay of AdamW."""
    clip: float = setting(1.0, low=1e-6, high=1e6)
    """Largest norm of a gradient."""
    entropy_first: float = setting(0.05, low=0, high=10)
    """Weight of the policy's entropy at the start; critic targets only."""
    entropy_last: float = setting(0.03, low=0, high=10)
    """The same at the end."""
    value_weight: float = setting(1.0, low=0, high=100)
    """Weight of the value's loss."""
    value_share: float = setting(0.25, low=1e-3, high=1)
    """Share of a batch that trains the value as well; a policy that plays without a search needs little."""
    tricks_weight: float = setting(0.0, low=0, high=100)
    """Weight of an auxiliary loss: how many tricks the mover will win."""
    ema: float = setting(0.99, low=0, high=0.999999)
    """Decay of the average of the weights, a step; the average is what plays."""


@dataclass(frozen=True)
class LearnerProcess(Settings):
    """Where the learner computes and how often it hands something out."""

    title: ClassVar[str] = "learner"

    learner: str = setting("auto", free=True)
    """Device of the learner: auto, cpu, cuda, cuda:1."""
    learner_threads: int = setting(1, low=1, high=1024, free=True)
    """Threads of each half of the learner's step, the policy's and the critic's, on a CPU."""
    autocast: Literal["auto", "off", "bf16", "fp16"] = setting("auto", free=True)
    """Number format of the learner's matrix products: auto takes bfloat16 where that is faster, off is float32."""
    publish_s: float = setting(1.0, low=0.01, high=3600, free=True)
    """Self-play gets new weights so often."""
    checkpoint_s: float = setting(20.0, low=0.1, high=86_400, free=True)
    """A checkpoint and the learner's state are kept so often: what a kill can cost."""

    def check(self) -> None:
        """Raises ConfigError for what is no device."""
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.learner):
            raise ConfigError(f"learner is {self.learner!r}; allowed: auto, cpu, cuda, cuda:1")

    def check_devices(self) -> None:
        """Raises ConfigError where this machine does not have the device."""
        check_cuda("learner", self.learner, [self.learner])


@dataclass(frozen=True)
class LearnerConfig(Learning, LearnerProcess):
    """All that a learner has to know: what it learns, and of the run what concerns it."""

    searches: bool = False
    """Whether self-play searches."""
    random_moves: float = 0.03
    """Share of uniform moves in self-play."""
    most_players: int = _core.MAX_PLAYERS
    """The most players of a round, whose hands the critic reads."""
    seed: int = 0
    """Seed of fresh weights and batches."""
