"""Settings of search, networks and self-play: defaults and what is allowed. No torch, no side effects.

Defaults live here and nowhere else; those of training in train_config.py. Read next: selfplay.py.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import numbers
import operator
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from shmzero import _core
from shmzero.errors import ConfigError

PRESETS: dict[str, tuple[int, int]] = {"light": (2, 20), "medium": (3, 30), "heavy": (5, 50)}
"""Determinizations and simulations in each."""

SUITS = ("spades", "hearts", "clubs", "diamonds", "none")
"""Names of the trumps, by the core's index; the last is a round without trumps."""

BUILT_IN = "random, threshold, mc90, mc900, uct10x90, uct10x90+solver (any numbers)"
"""Bots, in words."""
SOLVED_CARDS = 12
"""Most cards in all hands with which `+solver` solves a leaf: three tricks of four players."""
MOST_SIMULATIONS = 1 << 18
"""The most simulations of a decision, over all worlds (under max^n seats too); each takes 300 to 600 bytes."""
OLDER = "older"
"""Among `others` of a training run: one of its own earlier checkpoints."""


def plain(value: Any) -> Any:
    """A bool or number of numpy, or whatever else has `__index__`, as Python's own; anything else as it is."""
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, (bool, float)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises ConfigError unless `value` is a number from low to high."""
    value = plain(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} is {value!r}; allowed: {low:g} to {high:g}")


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raises ConfigError unless `value` is a whole number, of whatever type, from low to high."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; allowed: whole numbers {low} to {high}")


def seconds(name: str, value: float | None) -> float:
    """A time-out: None is without end. Raises ConfigError for what is no number."""
    if type(value) is float and value == value:
        return value
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise ConfigError(f"{name} is {value!r}; allowed: a number of seconds, or None to wait without end")
    return float(value)


SERVICE_LIMITS: dict[str, tuple[int, int]] = {
    "max_batch": (1, 2**20), "slots": (1, _core.MAX_WORKERS), "rows_per_slot": (1, 2**20),
    "timeout_ms": (0, 10_000), "spin_us": (0, 100_000),
}  # fmt: skip
"""The least and the most that each argument of a service may be; times may be fractions, and spin_us None."""


def check_service(name: str, value: Any, called: str | None = None) -> None:
    """Raises ConfigError unless `value` is allowed for an argument of SERVICE_LIMITS; `called`: its name in words."""
    low, high = SERVICE_LIMITS[name]
    if name not in ("timeout_ms", "spin_us"):
        check_whole(called or name, value, low, high)
    elif value is not None or name != "spin_us":
        check_number(called or name, value, low, high)


@functools.cache
def _types(kind: Hashable) -> dict[str, tuple[type, ...]]:
    """The types that each field takes; a Literal's is that of its values."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
        found[name] = tuple(str if get_origin(part) is Literal else part for part in parts)
    return found


def check_types(settings: Any) -> None:
    """Refuse values of another type, as a TOML file can hold them. An int will do for a float, a bool for no number.

    Numbers and bools of numpy become Python's.
    """
    for name, allowed in _types(settings.__class__).items():
        value = plain(getattr(settings, name))
        object.__setattr__(settings, name, value)  # the class is frozen, and this is its beginning
        fits = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in allowed):
            words = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
            raise ConfigError(f"{name} is {value!r}; allowed: {words}")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


@dataclass(frozen=True)
class SearchConfig:
    """One decision's search. Utilities are about 0 to 1, and so are `c_puct` and its like."""

    determinizations: int = 3
    """Worlds D drawn for a decision."""
    simulations: int = 30
    """Simulations S in each world; 0 plays the policy itself."""
    leaves_in_flight: int = 1
    """Leaves per tree and step; capped at simulations / 4."""
    c_puct: float = 1.25
    fpu_reduction: float = 0.1
    """An untried action counts as its parent's estimate less this."""
    opponents: Literal["policy", "maximise"] = "policy"
    """How the other seats choose: by their policy, or each for its own utility (max^n)."""
    root: Literal["puct", "halving"] = "puct"
    target: Literal["visits", "improved"] = "visits"
    """Policy target: visit counts, or prior x exp(improved_beta x Q)."""
    improved_beta: float = 8.0
    considered: int = 16
    """Root actions that sequential halving starts with."""
    known_hands: bool = False
    """Search the deal as it is, in one world. For analysis and tests; never set by self-play."""
    noise_fraction: float = 0.0
    """Share of Dirichlet noise in the root's prior; it never enters a target. Without simulations the
    share of moves drawn uniformly."""
    noise_alpha: float = 1.0
    temperature: float = 1.0
    """Self-play draws its moves from visits^(1/temperature), without simulations from policy^(1/temperature) but for
    the noise's share; halving plays its best action instead."""
    temperature_decisions: int = 99
    """Decisions of a round played with `temperature`; later ones with `final_temperature`."""
    final_temperature: float = 0.0
    rivalry: float = 0.0
    """Weight of the others' mean score in the utility."""
    solved_cards: int = 0
    """Leaves with so few cards in all hands get the exact max^n value of their world: a clairvoyant's. 0: none."""

    def __post_init__(self) -> None:
        check_types(self)
        check_number("determinizations", self.determinizations, 1, 10_000)
        check_number("simulations", self.simulations, 0, 1_000_000)
        check_number("leaves_in_flight", self.leaves_in_flight, 1, 4096)
        check_number("c_puct", self.c_puct, 0, 1000)
        check_number("fpu_reduction", self.fpu_reduction, -10, 10)
        check_choice("opponents", self.opponents, ("policy", "maximise"))
        check_choice("root", self.root, ("puct", "halving"))
        check_choice("target", self.target, ("visits", "improved"))
        if self.root == "halving" and self.target == "visits" and self.noise_fraction > 0 < self.simulations:
            raise ConfigError("target is 'visits' with root 'halving' and noise; allowed: target 'improved'")
        check_number("improved_beta", self.improved_beta, 0, 1000)
        check_number("considered", self.considered, 1, _core.NUM_ACTIONS)
        check_number("noise_fraction", self.noise_fraction, 0, 1)
        check_number("noise_alpha", self.noise_alpha, 1e-3, 1000)
        check_number("temperature", self.temperature, 0, 100)
        check_number("temperature_decisions", self.temperature_decisions, 0, 1000)
        check_number("final_temperature", self.final_temperature, 0, 100)
        check_number("rivalry", self.rivalry, 0, 10)
        check_number("solved_cards", self.solved_cards, 0, 20)
        if self.size() > MOST_SIMULATIONS:
            seats = f" for {_core.MAX_PLAYERS} seats each" if self.opponents == "maximise" else ""
            raise ConfigError(
                f"determinizations x simulations is {self.determinizations} x {self.simulations}{seats}; "
                f"allowed: {MOST_SIMULATIONS} in all"
            )

    def size(self) -> int:
        """Simulations of a decision over all worlds, times the seats whose values each may keep."""
        seats = _core.MAX_PLAYERS if self.opponents == "maximise" else 1
        return (1 if self.known_hands else self.determinizations) * self.simulations * seats

    def to_core(self) -> _core.SearchConfig:
        """The same settings as the core takes them."""
        core = _core.SearchConfig()
        enums = {"opponents": _core.Opponents, "root": _core.RootRule, "target": _core.Target}
        for name, value in asdict(self).items():
            setattr(core, name, getattr(enums[name], value) if name in enums else value)
        return core


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


def weighted(name: str, text: str, low: int, high: int) -> list[tuple[int, float]]:
    """Whole numbers with weights out of "4", "3-6", "4,5" or "4:15,5:70,6:15"."""
    problem = ConfigError(
        f"{name} is {text!r}; allowed: a number {low}..{high}, a range as 3-6, or weights as 4:15,5:70"
    )
    pairs: list[tuple[int, float]] = []
    for part in str(plain(text)).split(","):
        value, _, weight = part.partition(":")
        first, dash, last = value.partition("-")
        try:
            numbers = range(int(first), int(last if dash else first) + 1)
            share = float(weight) if weight else 1.0
        except ValueError:
            raise problem from None
        if not numbers or numbers[0] < low or numbers[-1] > high:
            raise problem
        if not (math.isfinite(share) and share > 0):
            raise problem
        pairs += [(number, share / len(numbers)) for number in numbers]
    return pairs


def trump_weights(text: str) -> list[tuple[int, float]]:
    """Trumps with weights out of "random", a suit's name, "none", or several of these."""
    if text == "random":
        return [(suit, 1.0) for suit in range(len(SUITS))]
    problem = ConfigError(
        f"trump is {text!r}; allowed: random, or one or more of {', '.join(SUITS)}, with weights as spades:3,none:1"
    )
    pairs = []
    for part in text.split(","):
        name, _, weight = part.partition(":")
        try:
            share = float(weight) if weight else 1.0
        except ValueError:
            raise problem from None
        if name not in SUITS or not (math.isfinite(share) and share > 0):
            raise problem
        pairs.append((SUITS.index(name), share))
    return pairs


def built_in_bot(name: str) -> _core.BotConfig | None:
    """The bot of a name: random; threshold; mcN, flat Monte-Carlo with N playouts; uctDxS, D worlds of S
    simulations, and uctDxS+solver. None for any other. Raises ConfigError for sizes beyond all sense."""
    kinds = _core.BotKind
    if name in ("random", "threshold"):
        return _core.BotConfig(getattr(kinds, name))
    if found := re.fullmatch(r"mc(\d{1,9})", name):
        playouts = int(found[1])
        check_number(f"playouts of {name}", playouts, 1, 10**8)
        return _core.BotConfig(kinds.monte_carlo, playouts=playouts)
    if found := re.fullmatch(r"uct(\d{1,9})x(\d{1,9})(\+solver)?", name):
        worlds, simulations = int(found[1]), int(found[2])
        check_number(f"worlds of {name}", worlds, 1, 10_000)
        check_number(f"simulations of {name}", simulations, 1, 10**6)
        solved = SOLVED_CARDS if found[3] else 0
        return _core.BotConfig(kinds.uct, worlds=worlds, simulations=simulations, solved_cards=solved)
    return None


def other_agents(text: str) -> list[tuple[str, _core.BotConfig | None, float]]:
    """(name, bot or None for a network, share) of each part of `others`. Raises ConfigError."""
    found: list[tuple[str, _core.BotConfig | None, float]] = []
    for part in filter(None, text.split(",")):
        name, _, share = part.rpartition(":")
        try:
            chance = float(share) if name else -1.0
        except ValueError:
            chance = -1.0
        if not 0 < chance <= 1:
            raise ConfigError(f"others has {part!r}; allowed: NAME:SHARE with shares in 0..1, such as threshold:0.2")
        found.append((name, built_in_bot(name), chance))
    if sum(share for _, _, share in found) > 1:
        raise ConfigError(f"others is {text!r}, more than all seats; allowed: shares of at most 1 together")
    networks = [name for name, bot, _ in found if bot is None]
    if len(networks) > 1:
        raise ConfigError(f"others names the networks {', '.join(networks)}; allowed: one, and any bots ({BUILT_IN})")
    return found


def play_settings(
    search: SearchConfig,
    seed: int = 0,
    players: str = "4",
    cards: str = "5",
    trump: str = "random",
    dealer: str = "random",
    games: bool = False,
    rules: _core.Rules | None = None,
    others: str = "",
) -> _core.PlaySettings:
    """What self-play plays, as the core takes it. Raises ConfigError for deals and games that cannot be."""
    check_number("seed", seed, 0, 2**64 - 1)
    if search.known_hands:
        raise ConfigError("known_hands is set; self-play never looks at hidden hands")
    core = _core.PlaySettings()
    core.seed = seed
    core.search = search.to_core()
    core.players = weighted("players", players, _core.MIN_PLAYERS, _core.MAX_PLAYERS)
    core.cards = weighted("cards", cards, 1, _core.NUM_CARDS // _core.MIN_PLAYERS)
    core.trumps = trump_weights(trump)
    smallest = min(size for size, _ in core.cards)
    for number, _ in core.players:
        if smallest * number > _core.NUM_CARDS:
            raise ConfigError(
                f"cards is {cards!r} with {number} players; the deck allows at most "
                f"{_core.NUM_CARDS // number} cards each"
            )
    fewest = min(number for number, _ in core.players)
    dealer = str(plain(dealer))
    if dealer == "random":
        core.dealer = -1
    elif dealer.isdecimal() and int(dealer) < fewest:
        core.dealer = int(dealer)
    else:
        raise ConfigError(f"dealer is {dealer!r}; allowed: random, or a seat 0..{fewest - 1}")
    core.games = games
    core.others = [(bot, share) for _, bot, share in other_agents(others)]
    if rules is not None:
        core.rules = rules
    if games:
        check_games(core)
    return core


def check_games(play: _core.PlaySettings) -> None:
    """Raises ConfigError where a game that may be drawn has too many rounds, or more cards than the deck."""
    for number, _ in play.players:
        most = _core.NUM_CARDS // number
        for cards in {cards for cards, _ in play.cards if cards <= most}:
            sizes = play.rules.hand_sizes(number, cards)
            if len(sizes) > _core.MAX_ROUNDS_PER_GAME:
                raise ConfigError(
                    f"a game of these rules has {len(sizes)} rounds; allowed: {_core.MAX_ROUNDS_PER_GAME}"
                )
            if max(sizes) > most:
                raise ConfigError(
                    f"the sequence of hand sizes has {max(sizes)} with {number} players; "
                    f"the deck allows at most {most} cards each"
                )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class SelfPlayConfig:
    """A self-play run. No setting is required; what is None follows from the machine."""

    rounds: int | None = None
    """Rounds the run folder shall hold in the end (default: 100)."""
    games: int | None = None
    """Whole games instead of single rounds."""
    first: int = 0
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
    workers: int | None = None
    """Worker processes (default: two for each inference process; on CUDA the cores less one, at most 8)."""
    lanes: int | None = None
    """Rounds that a worker plays at once (default: so that the batches are full)."""
    slots: int = 4
    """Slots of shared memory a worker has: while one is answered it works on another."""
    device: str = "auto"
    """auto, cpu, cpu*2 (two processes), cuda, cuda:0,cuda:1."""
    inference_threads: int | None = None
    """Threads of each inference process on a CPU (default: the cores divided among them)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the network: auto takes the fastest that the device has."""
    compile: bool = True
    """Serve a compiled network as soon as it is ready."""
    max_batch: int | None = None
    """Rows of a batch at most (default: 1024 on a CPU, 8192 on CUDA)."""
    timeout_ms: float = 2.0
    """A batch waits no longer than this for further rows."""
    spin_us: float | None = None
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
    stall_s: float = 120.0
    """An inference process that finishes no batch for so long, or a worker that moves nothing on, with work
    waiting, is replaced. How long a round or a decision takes makes no difference."""
    json: bool = False
    """Print one JSON object at the end and nothing else on standard output."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.rounds is not None and self.games is not None:
            raise ConfigError("rounds and games are both set; allowed: one of them")
        for name, high in (("rounds", 10**12), ("games", 10**10), ("workers", 256), ("lanes", 10**6),
                           ("inference_threads", 1024), ("max_batch", 2**20)):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, 1, high)
        check_number("first", self.first, 0, 10**12)
        check_number("slots", self.slots, 2, _core.MAX_SLOTS_PER_WORKER)
        check_number("timeout_ms", self.timeout_ms, 0, 10_000)
        if self.spin_us is not None:
            check_number("spin_us", self.spin_us, 0, 100_000)
        check_number("stall_s", self.stall_s, 1, 86_400)
        check_choice("preset", self.preset, PRESETS)
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_choice("evaluator", self.evaluator, ("net", "hash", "uniform"))
        check_choice("net", self.net, NETS)
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
            self.search(), self.seed, self.players, self.cards, self.trump, self.dealer,
            self.games is not None, others=self.others,
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
                raise ConfigError(
                    f"device is {text!r}; allowed: auto, cpu, cpu*2, cuda, cuda:0, cuda:0,cuda:1"
                )
            found += ["cpu" if kind == "cpu" else f"cuda:{int(index or 0)}"] * (int(times) if star else 1)
        return found

    def check_devices(self) -> None:
        """Raises ConfigError where this machine does not have the devices."""
        check_cuda("device", self.device, self.devices(resolve_auto=False))

    def identity(self) -> dict[str, Any]:
        """The settings that make a round what it is; a run folder keeps to them."""
        names = ("players", "cards", "trump", "dealer", "opponents", "root", "target", "noise_alpha",
                 "temperature", "temperature_decisions", "rivalry", "solved_cards",
                 "others", "evaluator", "seed")
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


def has_cuda() -> bool:
    """Whether there is an NVIDIA device and a torch that can use it, without importing that."""
    return has_nvidia() and torch_has_cuda() and num_cuda_devices() > 0


@functools.cache
def num_cuda_devices() -> int:
    """NVIDIA devices that this process may use, as the driver counts them; CUDA_VISIBLE_DEVICES may hide some.

    Asked in a process of its own: one that has asked the driver can no longer fork.
    """
    program = (
        "import ctypes; driver = ctypes.CDLL('libcuda.so.1'); number = ctypes.c_int()\n"
        "print(number.value if driver.cuInit(0) == driver.cuDeviceGetCount(ctypes.byref(number)) == 0 else 0)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else 0


def check_cuda(setting: str, value: str, devices: Iterable[str]) -> None:
    """Raises ConfigError where `value` of a setting stands for a CUDA device that cannot be used here.

    devices: what it stands for, as "cpu", "cuda" or "cuda:N".
    """
    wanted = [int(device.partition(":")[2] or 0) for device in devices if device.startswith("cuda")]
    if not wanted:
        return
    if not torch_has_cuda():
        raise ConfigError(f"{setting} is {value!r}, and the installed torch was built without CUDA; allowed: auto, cpu")
    number = num_cuda_devices()
    if max(wanted) >= number:
        there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(number))])
        raise ConfigError(f"{setting} is {value!r}, and the NVIDIA devices here are {number}; allowed: {there}")


def has_nvidia() -> bool:
    """Whether the kernel has an NVIDIA device."""
    return Path("/dev/nvidia0").exists() or Path("/dev/nvidiactl").exists()


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for NVIDIA devices, without importing it."""
    found = importlib.util.find_spec("torch")
    folders = (found.submodule_search_locations if found else None) or ()
    return any((Path(folder) / "lib" / "libtorch_cuda.so").exists() for folder in folders)


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file; keys are SelfPlayConfig's fields, with - or _."""
    settings = read_settings(path, SelfPlayConfig)
    for key in ("checkpoint", "out"):
        if isinstance(settings.get(key), str):
            settings[key] = Path(settings[key])
    return settings


def read_settings(path: Path, kind: type[Any]) -> dict[str, Any]:
    """What a TOML file sets of the fields of dataclass `kind`. Raises ConfigError for anything else."""
    try:
        table = tomllib.loads(os.fsdecode(path.read_bytes()))  # paths in it may be no text
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from None
    known = {field.name for field in fields(kind)}
    settings = {key.replace("-", "_"): value for key, value in table.items()}
    for key in settings:
        if key not in known:
            raise ConfigError(f"--config {path}: unknown setting {key!r}; known: {', '.join(sorted(known))}")
    for key in ("players", "cards", "dealer"):
        if isinstance(settings.get(key), int):
            settings[key] = str(settings[key])
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


def to_toml(settings: Mapping[str, Any]) -> str:
    """Flat settings as TOML; None is left out. The bytes of a path that is no text are those of os.fsencode."""

    def literal(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (int, float)):
            return repr(value)
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's escapes are JSON's

    return "".join(f"{key} = {literal(value)}\n" for key, value in settings.items() if value is not None)
