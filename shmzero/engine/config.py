"""Settings of self-play: defaults and what is allowed. No torch, no side effects."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.game.bots import BUILT_IN, other_agents
from shmzero.machine import check_cuda, cores, has_cuda
from shmzero.mcts.config import PRESETS, SearchConfig
from shmzero.mcts.play import play_settings
from shmzero.nets.config import NetName
from shmzero.settings import Settings, read_settings, setting


@dataclass(frozen=True)
class SelfPlayConfig(Settings):
    """A self-play run. No setting is required; what is None follows from the machine."""

    rounds: int | None = setting(None, low=1, high=10**12)
    """Rounds the run folder shall hold in the end (default: 100)."""
    games: int | None = setting(None, low=1, high=10**10)
    """Whole games instead of single rounds."""
    first: int = setting(0, low=0, high=10**12)
    """Number of the first round, or game. A number is always the same deal, whatever is played beside it."""
    players: str = "4"
    """Number of players: 4, 3-6, or with weights 4:15,5:70,6:15."""
    cards: str = "5"
    """Cards dealt to each, written likewise; with --games the largest hand."""
    trump: str = "random"
    """random, spades, hearts, clubs, diamonds, none, or several with commas."""
    dealer: str = "random"
    """random, or a seat."""
    preset: Literal["light", "medium", "heavy"] = "medium"
    """Search effort, worlds x simulations: light 2x20, medium 3x30, heavy 5x50."""
    determinizations: int | None = None
    """Worlds for each decision; overrides the preset."""
    simulations: int | None = None
    """Simulations in each world; overrides the preset. 0 plays the policy itself."""
    leaves_in_flight: int = 1
    """Leaves per tree and step, at most simulations / 4."""
    opponents: Literal["policy", "maximise"] = "policy"
    """How the other seats choose in the search: by their policy, or each for its own utility (max^n)."""
    root: Literal["puct", "halving"] = "puct"
    """Rule that shares the simulations among the root's actions: PUCT or sequential halving."""
    target: Literal["visits", "improved"] = "visits"
    """Recorded policy target: visit counts, or the prior improved by the values found."""
    noise_fraction: float | None = None
    """Share of Dirichlet noise in the root's priors (default: 0.25); without a search the share of
    uniformly random moves (default: 0.03)."""
    noise_alpha: float = 1.0
    """Concentration of that noise: small is spiky, large is even."""
    temperature: float = 1.0
    """Temperature of the choice by visit counts, or by the policy without a search: 0 plays the highest, 1 in
    proportion."""
    temperature_decisions: int = 99
    """Decisions of a round that are played with the temperature; later ones as with 0."""
    rivalry: float = 0.0
    """Weight of the others' mean score in the utility."""
    solved_cards: int = 0
    """Leaves with so few cards in all hands get the exact max^n value of their world: a clairvoyant's. 0: none."""
    others: str = ""
    """Who else holds seats, each but one with the chance given: bots and at most one network, as
    threshold:0.2,old.safetensors:0.1. They do not search; their decisions are not recorded as searched."""
    workers: int | None = setting(None, low=1, high=256)
    """Worker processes (default: two for each inference process; on CUDA the cores less one, at most 8)."""
    lanes: int | None = setting(None, low=1, high=10**6)
    """Rounds that a worker plays at once (default: so that the batches are full)."""
    slots: int = setting(4, low=2, high=_core.MAX_SLOTS_PER_WORKER)
    """Slots of shared memory a worker has: while one is answered it works on another."""
    device: str = "auto"
    """auto, cpu, cpu*2 (two processes), cuda, cuda:0,cuda:1."""
    inference_threads: int | None = setting(None, low=1, high=1024)
    """Threads of each inference process on a CPU (default: the cores divided among them)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the network: auto takes the fastest that the device has."""
    compile: bool = True
    """Serve a compiled network as soon as it is ready."""
    max_batch: int | None = setting(None, low=1, high=2**20)
    """Rows of a batch at most (default: 1024 on a CPU, 8192 on CUDA)."""
    timeout_ms: float = setting(2.0, low=0, high=10_000)
    """A batch waits no longer than this for further rows."""
    spin_us: float | None = setting(None, low=0, high=100_000)
    """Busy waiting before a process sleeps, microseconds (default: 50 where a core is spare, else 0)."""
    evaluator: Literal["net", "hash", "uniform"] = "net"
    """The network, or a stand-in that needs no torch."""
    net: NetName = "plan"
    """Sizes of a fresh network."""
    checkpoint: Path | None = None
    """Weights (.safetensors). Without it the network is initialised from the seed."""
    follow: bool = False
    """Take up the checkpoint file's new weights whenever it is replaced."""
    out: Path | None = None
    """Run folder; an existing one is continued (default: a new folder under runs/)."""
    seed: int = 0
    """Seed of deals, search and fresh weights: the same seed and settings give the same rounds."""
    stall_s: float = setting(120.0, low=1, high=86_400)
    """An inference process that finishes no batch for so long, or a worker that moves nothing on, with work
    waiting, is replaced. How long a round or a decision takes makes no difference."""
    json: bool = False
    """Print one JSON object at the end and nothing else on standard output."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        if self.rounds is not None and self.games is not None:
            raise ConfigError("rounds and games are both set; allowed: one of them")
        if self.checkpoint is not None and self.evaluator != "net":
            raise ConfigError(f"checkpoint is set with evaluator {self.evaluator!r}; allowed: with evaluator net")
        if self.follow and self.checkpoint is None:
            raise ConfigError("follow is set without a checkpoint; allowed: with --checkpoint FILE")
        self.devices(resolve_auto=False)
        self.play_settings()
        if self.evaluator != "net" and self.other_network() is not None:
            raise ConfigError(f"others names a network with evaluator {self.evaluator!r}; allowed: bots ({BUILT_IN})")

    def _usual_noise(self) -> float:
        return 0.03 if self.simulations == 0 else 0.25

    def search(self) -> SearchConfig:
        """The search that preset and overrides come to."""
        worlds, simulations = PRESETS[self.preset]
        noise = self._usual_noise() if self.noise_fraction is None else self.noise_fraction
        return SearchConfig(
            determinizations=worlds if self.determinizations is None else self.determinizations,
            simulations=simulations if self.simulations is None else self.simulations,
            leaves_in_flight=self.leaves_in_flight,
            opponents=self.opponents,
            root=self.root,
            target=self.target,
            noise_fraction=noise,
            noise_alpha=self.noise_alpha,
            temperature=self.temperature,
            temperature_decisions=self.temperature_decisions,
            rivalry=self.rivalry,
            solved_cards=self.solved_cards,
        )

    def play_settings(self) -> _core.PlaySettings:
        """The settings of what the workers play."""
        return play_settings(
            self.search(),
            self.seed,
            self.players,
            self.cards,
            self.trump,
            self.dealer,
            self.games is not None,
            others=self.others,
        )

    def other_network(self) -> str | None:
        """The network that `others` names beside bots, or None."""
        return next((name for name, bot, _ in other_agents(self.others) if bot is None), None)

    def devices(self, resolve_auto: bool = True) -> list[str]:
        """One entry an inference process: "cpu" or "cuda:N"."""
        text = self.device
        if text == "auto":
            if not resolve_auto:
                return []
            if self.evaluator != "net":
                return ["cpu"]
            return ["cuda:0"] if has_cuda() else ["cpu"] * min(cores(), 8)
        found: list[str] = []
        for part in text.split(","):
            name, star, times = part.partition("*")
            kind, colon, index = name.partition(":")
            fits = (kind == "cpu" and not colon) or (kind == "cuda" and (not colon or index.isdecimal()))
            if not fits or (star and not (times.isdecimal() and 1 <= int(times) <= 64)):
                raise ConfigError(f"device is {text!r}; allowed: auto, cpu, cpu*2, cuda, cuda:0, cuda:0,cuda:1")
            found += ["cpu" if kind == "cpu" else f"cuda:{int(index or 0)}"] * (int(times) if star else 1)
        return found

    def check_devices(self) -> None:
        """Raises ConfigError where this machine does not have the devices."""
        check_cuda("device", self.device, self.devices(resolve_auto=False))

    def identity(self) -> dict[str, Any]:
        """The settings that make a round what it is; a run folder keeps to them."""
        names = (
            "players",
            "cards",
            "trump",
            "dealer",
            "opponents",
            "root",
            "target",
            "noise_alpha",
            "temperature",
            "temperature_decisions",
            "rivalry",
            "solved_cards",
            "others",
            "evaluator",
            "seed",
        )
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        search = self.search()
        if self.evaluator == "net":
            settings["net"] = self.net if self.checkpoint is None else "of a checkpoint"
        settings |= {
            "unit": "round" if self.games is None else "game",
            "determinizations": search.determinizations,
            "simulations": search.simulations,
            "noise_fraction": None if search.noise_fraction == self._usual_noise() else search.noise_fraction,
            "leaves_in_flight": search.to_core().wave_leaves,
            "record_version": _core.RECORD_VERSION,
        }
        return settings


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file; keys are SelfPlayConfig's fields, with - or _."""
    settings = read_settings(path, SelfPlayConfig)
    for key in ("checkpoint", "out"):
        if isinstance(settings.get(key), str):
            settings[key] = Path(settings[key])
    return settings


def to_flags(config: SelfPlayConfig) -> str:
    """The flags of python -m shmzero.selfplay that come to these settings, for a shell."""
    words: list[str] = []
    for field in fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if value is False and field.default is True:
            words.append(f"--no-{name}")
        elif value != field.default:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)
