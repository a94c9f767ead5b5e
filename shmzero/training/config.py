"""Settings of a training run: defaults, presets and what is allowed. Read next: train.py."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shmzero import _core
from shmzero.engine.config import SelfPlayConfig
from shmzero.errors import ConfigError
from shmzero.machine import check_cuda, has_cuda
from shmzero.nets.config import NetName
from shmzero.settings import Settings, setting

MANY_GAMES = 10**9
"""More than a run will play: it ends by its time or its rounds."""
CPU_LANES, CUDA_LANES = 512, 2048
"""Rounds that a worker plays at once without a search: the fewer, the newer the weights that play them."""


@dataclass(frozen=True)
class TrainConfig(Settings):
    """A training run: self-play, learner and matches at once, for a given time or number of rounds."""

    minutes: float | None = setting(2.0, low=0.05, high=1e6)
    """Wall time to train, from the command's start; the time between sessions is not counted."""
    rounds: int | None = setting(None, low=1, high=10**12)
    """Rounds to play; with minutes as well, whichever comes first."""
    players: str = "4"
    """Number of players: 4, 3-6, or with weights 4:15,5:70,6:15."""
    cards: str = "5"
    """Cards dealt to each, written likewise."""
    trump: str = "random"
    """random, spades, hearts, clubs, diamonds, none, or several with commas."""
    dealer: str = "random"
    """random, or a seat."""
    games: bool = False
    """Play whole games, whose rounds know the score; `cards` is then the largest hand. Only whole ones are kept."""
    utility: Literal["points", "win"] = "points"
    """What is learned: the points of a round, or, with games, the share of the win of the game."""
    targets: Literal["critic", "visits", "improved"] = "critic"
    """What the policy learns from: a critic that sees the deal, or of the search the visit counts or the
    prior improved by Q."""
    search: str = "0"
    """Worlds x simulations of self-play: 0 (the policy itself), 3x30, or stages of the run as 1x15,2x25,3x35,
    with their lengths as 1x15:1,2x25:3."""
    root: Literal["puct", "halving"] = "puct"
    """Rule that shares a search's simulations among the root's actions: PUCT with noise, or sequential halving."""
    seats: Literal["policy", "maximise"] = "policy"
    """How a search has the other seats choose: by their policy, or each for its own utility (max^n)."""
    solved_cards: int = setting(0, low=0, high=20)
    """Leaves of a search with so few cards in all hands get the exact max^n value of their world; 0: none."""
    rivalry: float = setting(0.0, low=0, high=10)
    """Weight of the others' mean score in the utility."""
    others: str = ""
    """Who else holds seats of self-play, each but one with the chance given: bots, and at most one network,
    `older` for the run's own earlier checkpoints in turn, as older:0.2,threshold:0.1. What they do is not learned;
    what every seat comes to, theirs too, is what the value learns."""
    random_moves: float = setting(0.03, low=0, high=1)
    """Share of uniform moves; with a search the share of noise in its root."""
    net: NetName = "quick"
    """Sizes of the network."""
    critic_net: NetName = "quick"
    """Sizes of the critic, one trunk; critic targets only."""
    buffer: int = setting(150_000, low=1024, high=10**9)
    """Newest positions, which batches are drawn from."""
    batch: int = setting(512, low=1, high=2**20)
    """Positions of a step: in a short run many small steps are worth more than few large ones."""
    replay_ratio: float = setting(2.0, low=0.01, high=100)
    """How often a position is seen on average; the faster of self-play and learner waits."""
    learning_rate: float = setting(1e-3, low=1e-8, high=1)
    """At first; falls to a hundredth as a cosine over the run. At twice as much the deeper networks go blind: what
    they make of a position no longer depends on it."""
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
    autocast: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Number format of the learner's matrix products: auto takes bfloat16 where that is faster, off is float32."""
    publish_s: float = setting(1.0, low=0.01, high=3600)
    """Self-play gets new weights so often."""
    checkpoint_s: float = setting(20.0, low=0.1, high=86_400)
    """A checkpoint and the learner's state are kept so often: what a kill can cost."""
    closing_s: float = setting(1.5, low=0, high=60)
    """Taken off the minutes for saving at the end."""
    evaluate_s: float = setting(30.0, low=0, high=10**6)
    """A match against each opponent so often, and one at the end; 0 plays only the last."""
    opponents: str = "threshold"
    """Built-in opponents of the matches, with commas; empty for none."""
    deals: int = setting(250, low=2, high=10**6)
    """Deals of a match during the run, each played from every seat; 1000 at the end."""
    rate: bool = False
    """With the matches, rate the newest checkpoint, older ones and the opponents together: ratings.json."""
    gate: bool = False
    """Self-play gets only checkpoints that beat the one it has: the match's whole interval above 0."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard as well, into RUN/tensorboard."""
    device: str = "auto"
    """Devices of self-play: auto (CUDA where there is some; else one process, with a search one a core, at most 8),
    cpu, cpu*2, cuda, cuda:0,cuda:1."""
    learner: str = "auto"
    """Device of the learner: auto, cpu, cuda, cuda:1."""
    learner_threads: int = setting(1, low=1, high=1024)
    """Threads of each half of the learner's step, the policy's and the critic's, on a CPU."""
    workers: int | None = None
    """Worker processes (default: two for each inference process; on CUDA the cores less one, at most 8)."""
    lanes: int | None = setting(None, low=1, high=10**6)
    """Rounds that a worker plays at once (default: 512, on CUDA 2048, with a search so many that batches are full)."""
    max_batch: int | None = None
    """Rows of a batch of self-play at most (default: 1024 on a CPU, 8192 on CUDA)."""
    compile: bool = False
    """Serve a compiled network as soon as it is ready; worth it in long runs."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the network in self-play: auto takes the fastest that the device has."""
    seed: int = 0
    """Seed of deals, fresh weights and batches."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        if self.minutes is None and self.rounds is None:
            raise ConfigError("minutes and rounds are both unset; allowed: at least one of them")
        if self.utility == "win" and (not self.games or self.searches()):
            raise ConfigError("utility is 'win'; allowed: with --games and without a search (which ends in points)")
        if self.utility == "win" and self.gate:
            raise ConfigError("gate is set with utility 'win', and compares points; allowed: with utility 'points'")
        if self.minutes is not None and self.closing_s >= 60 * self.minutes:
            raise ConfigError(
                f"closing_s is {self.closing_s:g} of {60 * self.minutes:g} s in all; allowed: less than the minutes"
            )
        if self.utility == "win" and self.rivalry:
            raise ConfigError(f"rivalry is {self.rivalry} with utility 'win', which has no points; allowed: 0")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.learner):
            raise ConfigError(f"learner is {self.learner!r}; allowed: auto, cpu, cuda, cuda:1")
        if self.targets != "critic" and 0 in (simulations for _, simulations in self.stages()):
            raise ConfigError(
                f"targets is {self.targets!r} with a search of 0 simulations; allowed: for example --search 3x30"
            )
        if not self.searches():
            for name, default in (("root", "puct"), ("seats", "policy"), ("solved_cards", 0)):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"{name} is {getattr(self, name)!r} without a search; allowed: with one, as --search 3x30"
                    )
        for stage in range(len(self.stages())):
            self.self_play(stage, None)

    def _stages(self) -> list[tuple[int, int, float]]:
        """(worlds, simulations, length relative to the others) of each stage of self-play."""
        found = []
        for part in self.search.split(","):
            effort, colon, length = part.partition(":")
            worlds, times, simulations = effort.partition("x")
            try:
                weight = float(length) if colon else 1.0
            except ValueError:
                weight = math.nan
            if effort == "0":
                worlds, times, simulations = "1", "x", "0"
            fits = times and worlds.isdecimal() and simulations.isdecimal() and int(worlds)
            if not fits or (effort != "0" and not int(simulations)) or not 0 < weight < math.inf:
                raise ConfigError(
                    f"search is {self.search!r}; allowed: 0, 3x30, stages as 1x15,2x25,3x35, or with their lengths "
                    "as 1x15:1,2x25:3"
                )
            found.append((int(worlds), int(simulations), weight))
        return found

    def stages(self) -> list[tuple[int, int]]:
        """(worlds, simulations) of each stage of self-play."""
        return [(worlds, simulations) for worlds, simulations, _ in self._stages()]

    def searches(self) -> bool:
        """Whether self-play searches in any stage."""
        return any(simulations > 0 for _, simulations in self.stages())

    def stage(self, done: float) -> int:
        """The stage in which the share `done` of the run falls."""
        ends = list(itertools.accumulate(length for _, _, length in self._stages()))
        return sum(done * ends[-1] >= end for end in ends[:-1])

    def self_play(self, stage: int, checkpoint: Path | None) -> SelfPlayConfig:
        """The settings of self-play in a stage."""
        worlds, simulations = self.stages()[stage]
        device, lanes = self.device, self.lanes
        if simulations == 0:  # a policy alone costs less than what it is trained by
            device = "cpu" if device == "auto" and not has_cuda() else device
            lanes = (CPU_LANES if device.startswith("cpu") else CUDA_LANES) if lanes is None else lanes
        return SelfPlayConfig(
            players=self.players,
            cards=self.cards,
            trump=self.trump,
            dealer=self.dealer,
            games=MANY_GAMES if self.games else None,
            determinizations=worlds,
            simulations=simulations,
            noise_fraction=self.random_moves,
            target="visits" if self.targets == "visits" else "improved",
            root=self.root,
            opponents=self.seats,
            solved_cards=self.solved_cards,
            rivalry=self.rivalry,
            others=self.others,
            workers=self.workers,
            lanes=lanes,
            device=device,
            inference_threads=1,
            precision=self.precision,
            compile=self.compile,
            max_batch=self.max_batch,
            net=self.net,
            checkpoint=checkpoint,
            seed=self.seed,
        )

    def learner_device(self) -> str:
        """Where the learner computes, as torch names it."""
        if self.learner == "auto":
            return "cuda:0" if has_cuda() else "cpu"
        return self.learner

    def check_devices(self) -> None:
        """Raises ConfigError where this machine does not have the devices of self-play and learner."""
        self.self_play(0, None).check_devices()
        check_cuda("learner", self.learner, [self.learner])

    def identity(self) -> dict[str, Any]:
        """The settings that make a run what it is; a run folder keeps to them."""
        free = (
            "minutes",
            "rounds",
            "publish_s",
            "checkpoint_s",
            "closing_s",
            "evaluate_s",
            "opponents",
            "deals",
            "rate",
            "tensorboard",
            "device",
            "learner",
            "learner_threads",
            "workers",
            "lanes",
            "max_batch",
            "compile",
            "precision",
            "autocast",
        )
        settings = {name: value for name, value in asdict(self).items() if name not in free}
        for name in ("redeals", "neurd_share"):  # which runs from before there were any go on without
            if settings[name] == 0 or self.targets != "critic":
                del settings[name]
        return settings | {"record_version": _core.RECORD_VERSION, "feature_version": _core.FEATURE_VERSION}
