"""Settings of self-play: defaults and what is allowed. No torch, no side effects."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.game.bots import BUILT_IN, other_agents
from shmzero.game.deals import Deals
from shmzero.inference.config import Inference
from shmzero.mcts.config import PRESETS, MoveRules, SearchConfig
from shmzero.mcts.play import play_settings
from shmzero.nets.config import NetSource
from shmzero.settings import Settings, declarations, read_settings, setting

DEFAULT_ROUNDS = 100
USUAL_NOISE, USUAL_RANDOM_MOVES = 0.25, 0.03
"""`random_moves` of self-play with a search and without one."""


@dataclass(frozen=True)
class Length(Settings):
    """What a run folder shall hold."""

    rounds: int | None = setting(None, low=1, high=10**12, free=True, usual=True)
    """Rounds the run folder shall hold in the end."""
    games: int | None = setting(None, low=1, high=10**10, free=True, usual=True)
    """Number of whole games to play instead of single rounds."""
    first: int = setting(0, low=0, high=10**12, free=True)
    """Number of the first round, or game. A number is always the same deal, whatever is played beside it."""

    def units(self) -> int:
        """How many rounds, or games, the run folder shall hold in the end."""
        return self.games or self.rounds or DEFAULT_ROUNDS

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        if self.rounds is not None and self.games is not None:
            raise ConfigError("rounds and games are both set; allowed: one of them")


@dataclass(frozen=True)
class SelfPlaySearch(MoveRules):
    """The search of self-play."""

    preset: Literal["light", "medium", "heavy"] = setting("medium", usual=True)
    """Search effort, worlds x simulations: light 2x20, medium 3x30, heavy 5x50."""
    determinizations: int | None = None
    """Worlds for each decision; overrides the preset."""
    simulations: int | None = setting(None, usual=True)
    """Simulations in each world; overrides the preset. 0 plays the policy itself."""

    def effort(self) -> tuple[int, int]:
        """Worlds, and simulations in each."""
        worlds, simulations = PRESETS[self.preset]
        return (
            worlds if self.determinizations is None else self.determinizations,
            simulations if self.simulations is None else self.simulations,
        )


@dataclass(frozen=True)
class Seats(Settings):
    """Who moves, and how often by chance."""

    title: ClassVar[str] = "seats"

    random_moves: float | None = setting(None, low=0, high=1)
    """Share of uniformly random moves; with a search the share of Dirichlet noise in its root's priors."""
    opponent_pool: str = ""
    """Who else holds seats, each but one with the chance given: bots and at most one network, as
    threshold:0.2,old.safetensors:0.1. In training `older` is one of the run's own earlier checkpoints. They do not
    search; their decisions are not recorded as searched, and nobody learns to make them."""

    def check(self) -> None:
        """Raises ConfigError for what is no pool."""
        other_agents(self.opponent_pool)

    def network(self) -> str | None:
        """The network that the pool names beside bots, or None."""
        return next((name for name, bot, _ in other_agents(self.opponent_pool) if bot is None), None)


@dataclass(frozen=True)
class Evaluator(NetSource):
    """What evaluates the positions of self-play."""

    evaluator: Literal["net", "hash", "uniform"] = "net"
    """The network, or a stand-in that needs no torch."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        if self.checkpoint is not None and self.evaluator != "net":
            raise ConfigError(f"checkpoint is set with evaluator {self.evaluator!r}; allowed: with evaluator net")
        super().check()


@dataclass(frozen=True)
class Processes(Settings):
    """The worker processes of self-play, and when a process counts as stuck."""

    title: ClassVar[str] = "processes"

    workers: int | None = setting(None, low=1, high=256, free=True)
    """Worker processes, which play the rounds."""
    lanes: int | None = setting(None, low=1, high=10**6, free=True)
    """Rounds that a worker plays at once; without it so many that the batches are full."""
    slots: int = setting(4, low=2, high=_core.MAX_SLOTS_PER_WORKER, free=True)
    """Slots of shared memory a worker has: while one is answered it works on another."""
    stall_s: float = setting(120.0, low=1, high=86_400, free=True)
    """An inference process that finishes no batch for so long, or a worker that moves nothing on, with work
    waiting, is replaced. How long a round or a decision takes makes no difference."""
    cluster: str | None = setting(None, free=True)
    """Play on all nodes of a Ray cluster: auto for the one that runs on this machine, local to start one here, or
    HOST:PORT of its head. Needs the extra shmzero[cluster]."""

    def check(self) -> None:
        """Raises ConfigError for what is no address."""
        if self.cluster is not None and not re.fullmatch(r"auto|local|[^\s:/]+:\d{1,5}", self.cluster):
            raise ConfigError(f"cluster is {self.cluster!r}; allowed: auto, local, or HOST:PORT of its head")
        super().check()


@dataclass(frozen=True)
class Output(Settings):
    """Where a run goes and what it prints."""

    out: Path | None = setting(None, free=True, usual=True)
    """Run folder; an existing one is continued. Without it a new folder under runs/."""
    json: bool = setting(False, free=True)
    """Print one JSON object at the end and nothing else on standard output."""


@dataclass(frozen=True)
class SelfPlayConfig(Settings):
    """A self-play run. No setting is required; what is None follows from the machine.

    `SelfPlayConfig.of(rounds=20, players="3-6")` makes one out of flat names.
    """

    old_names: ClassVar[Mapping[str, str]] = {
        "opponents": "opponent_model",
        "target": "targets",
        "noise_fraction": "random_moves",
        "others": "opponent_pool",
    }

    length: Length = field(default=Length())
    deals: Deals = field(default=Deals())
    search: SelfPlaySearch = field(default=SelfPlaySearch())
    seats: Seats = field(default=Seats())
    net: Evaluator = field(default=Evaluator())
    inference: Inference = field(default=Inference())
    processes: Processes = field(default=Processes())
    output: Output = field(default=Output())
    seed: int = setting(0, usual=True)
    """Seed of deals, search and fresh weights: the same seed and settings give the same rounds."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        self.play_settings()
        if self.net.evaluator != "net" and self.seats.network() is not None:
            raise ConfigError(
                f"opponent_pool names a network with evaluator {self.net.evaluator!r}; allowed: bots ({BUILT_IN})"
            )

    def usual_random_moves(self) -> float:
        """`random_moves` where it is not set."""
        return USUAL_NOISE if self.search.effort()[1] else USUAL_RANDOM_MOVES

    def search_config(self) -> SearchConfig:
        """The search that preset and overrides come to."""
        worlds, simulations = self.search.effort()
        noise = self.seats.random_moves
        return SearchConfig(
            **self.search.part(MoveRules),
            determinizations=worlds,
            simulations=simulations,
            noise_fraction=self.usual_random_moves() if noise is None else noise,
        )

    def play_settings(self) -> _core.PlaySettings:
        """What the workers play, as the core takes it."""
        return play_settings(
            self.search_config(),
            self.seed,
            **asdict(self.deals),
            games=self.length.games is not None,
            others=self.seats.opponent_pool,
        )

    def identity(self) -> dict[str, Any]:
        """The settings that make a round what it is; a run folder keeps to them."""
        kept = {name: value for name, value in self.flat().items() if not declarations(SelfPlayConfig)[name].free}
        search = self.search_config()
        del kept["preset"]
        if self.net.evaluator != "net":
            del kept["net"]
        elif self.net.checkpoint is not None:
            kept["net"] = "of a checkpoint"
        return kept | {
            "unit": "round" if self.length.games is None else "game",
            "determinizations": search.determinizations,
            "simulations": search.simulations,
            "random_moves": None if search.noise_fraction == self.usual_random_moves() else search.noise_fraction,
            "leaves_in_flight": search.to_core().wave_leaves,
            "record_version": _core.RECORD_VERSION,
        }


def read_toml(path: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The settings of a TOML file, as SelfPlayConfig.of takes them; see read_settings."""
    return read_settings(path, SelfPlayConfig, say)


def to_flags(config: SelfPlayConfig) -> str:
    """The flags of python -m shmzero.selfplay that come to these settings, for a shell."""
    words: list[str] = []
    usual = SelfPlayConfig().flat()
    for key, value in config.flat().items():
        name = key.replace("_", "-")
        if value is False and usual[key] is True:
            words.append(f"--no-{name}")
        elif value != usual[key]:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)
