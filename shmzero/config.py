"""Every setting, its default and what is allowed. Frozen dataclasses; no torch, no side effects.

Defaults live here and nowhere else. Read next: selfplay.py, which turns them into a run.
"""

from __future__ import annotations

import functools
import math
import os
import tomllib
import types
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from shmzero import _core
from shmzero.errors import ConfigError

PRESETS: dict[str, tuple[int, int]] = {"light": (2, 20), "medium": (3, 30), "heavy": (5, 50)}
"""Determinizations and simulations in each."""

SUITS = ("spades", "hearts", "clubs", "diamonds", "none")
"""Names of the trumps, by the core's index; the last is a round without trumps."""


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} is {value!r}; allowed: {low:g} to {high:g}")


@functools.cache
def _types(kind: Hashable) -> dict[str, tuple[type, ...]]:
    """The types that each field takes; a Literal's is that of its values."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
        found[name] = tuple(str if get_origin(part) is Literal else part for part in parts)
    return found


def _check_types(settings: Any) -> None:
    """Refuse values of another type, as a TOML file can hold them. An int will do for a float, a bool for no number."""
    for name, allowed in _types(settings.__class__).items():
        value = getattr(settings, name)
        fits = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in allowed):
            words = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
            raise ConfigError(f"{name} is {value!r}; allowed: {words}")


def _choice(name: str, value: str, allowed: Iterable[str]) -> None:
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
    temperature_decisions: int = 99
    """Decisions of a round played with `temperature`; later ones with `final_temperature`."""
    final_temperature: float = 0.0
    rivalry: float = 0.0
    """Weight of the others' mean score in the utility."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check("determinizations", self.determinizations, 1, 10_000)
        _check("simulations", self.simulations, 0, 1_000_000)
        _check("leaves_in_flight", self.leaves_in_flight, 1, 4096)
        _check("c_puct", self.c_puct, 0, 1000)
        _check("fpu_reduction", self.fpu_reduction, -10, 10)
        _choice("opponents", self.opponents, ("policy", "maximise"))
        _choice("root", self.root, ("puct", "halving"))
        _choice("target", self.target, ("visits", "improved"))
        _check("improved_beta", self.improved_beta, 0, 1000)
        _check("considered", self.considered, 1, _core.NUM_ACTIONS)
        _check("noise_fraction", self.noise_fraction, 0, 1)
        _check("noise_alpha", self.noise_alpha, 1e-3, 1000)
        _check("temperature", self.temperature, 0, 100)
        _check("temperature_decisions", self.temperature_decisions, 0, 1000)
        _check("final_temperature", self.final_temperature, 0, 100)
        _check("rivalry", self.rivalry, 0, 10)

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
        _check_types(self)
        _check("width", self.width, 8, 4096)
        _check("hidden", self.hidden, 8, 16384)
        _check("blocks", self.blocks, 0, 64)
        _check("trunks", self.trunks, 1, 2)


NETS: dict[str, NetConfig] = {
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
    for part in str(text).split(","):
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


def play_settings(
    search: SearchConfig,
    seed: int = 0,
    players: str = "4",
    cards: str = "5",
    trump: str = "random",
    dealer: str = "random",
    games: bool = False,
    rules: _core.Rules | None = None,
) -> _core.PlaySettings:
    """What self-play plays, as the core takes it. Raises ConfigError for deals that cannot be."""
    _check("seed", seed, 0, 2**64 - 1)
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
    if dealer == "random":
        core.dealer = -1
    elif dealer.isdecimal() and int(dealer) < fewest:
        core.dealer = int(dealer)
    else:
        raise ConfigError(f"dealer is {dealer!r}; allowed: random, or a seat 0..{fewest - 1}")
    core.games = games
    if rules is not None:
        core.rules = rules
    return core


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
    """Of the choice among visit counts: 0 plays the most visited action, 1 in proportion."""
    temperature_decisions: int = 99
    """Decisions of a round that are played with the temperature; later ones play the most visited."""
    rivalry: float = 0.0
    """Weight of the others' mean score in the utility."""
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
    """Rows of a batch at most (default: 512 on a CPU, 8192 on CUDA)."""
    timeout_ms: float = 2.0
    """A batch waits no longer than this for further rows."""
    evaluator: Literal["net", "hash", "uniform"] = "net"
    """The network, or a stand-in that needs no torch."""
    net: Literal["plan", "small", "quick"] = "plan"
    """Sizes of a fresh network."""
    checkpoint: Path | None = None
    """Weights (.safetensors). Without it the network is initialised from the seed."""
    follow: bool = False
    """Take up the checkpoint file's new weights whenever it is replaced."""
    out: Path | None = None
    """Run folder; an existing one is continued (default: a new folder under runs/)."""
    seed: int = 0
    """Of deals, search and fresh weights: the same seed and settings give the same rounds."""
    stall_s: float = 120.0
    """An inference process that finishes no batch for so long, with work waiting, is replaced."""
    json: bool = False
    """Print one JSON object at the end and nothing else on standard output."""

    def __post_init__(self) -> None:
        _check_types(self)
        if self.rounds is not None and self.games is not None:
            raise ConfigError("rounds and games are both set; allowed: one of them")
        for name, high in (("rounds", 10**12), ("games", 10**10), ("workers", 256), ("lanes", 10**6),
                           ("inference_threads", 1024), ("max_batch", 2**20)):
            value = getattr(self, name)
            if value is not None:
                _check(name, value, 1, high)
        _check("slots", self.slots, 2, 8)
        _check("timeout_ms", self.timeout_ms, 0, 10_000)
        _check("stall_s", self.stall_s, 1, 86_400)
        _choice("preset", self.preset, PRESETS)
        _choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        _choice("evaluator", self.evaluator, ("net", "hash", "uniform"))
        _choice("net", self.net, NETS)
        if self.checkpoint is not None and self.evaluator != "net":
            raise ConfigError(f"checkpoint is set with evaluator {self.evaluator!r}; allowed: with evaluator net")
        if self.follow and self.checkpoint is None:
            raise ConfigError("follow is set without a checkpoint; allowed: with --checkpoint FILE")
        self.devices(resolve_auto=False)
        self.play_settings()

    def search(self) -> SearchConfig:
        """The search that preset and overrides come to."""
        worlds, simulations = PRESETS[self.preset]
        noise = self.noise_fraction
        if noise is None:
            noise = 0.03 if self.simulations == 0 else 0.25
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
        )

    def play_settings(self) -> _core.PlaySettings:
        """What the workers play."""
        return play_settings(
            self.search(), self.seed, self.players, self.cards, self.trump, self.dealer,
            self.games is not None,
        )

    def devices(self, resolve_auto: bool = True) -> list[str]:
        """One entry an inference process: "cpu" or "cuda:N"."""
        text = self.device
        if text == "auto":
            if not resolve_auto:
                return []
            if self.evaluator != "net":
                return ["cpu"]
            return ["cuda:0"] if _has_cuda() else ["cpu"] * min(cores(), 8)
        found: list[str] = []
        for part in text.split(","):
            name, star, times = part.partition("*")
            kind, colon, index = name.partition(":")
            fits = (kind == "cpu" and not colon) or (kind == "cuda" and (not colon or index.isdecimal()))
            if not fits or (star and not (times.isdecimal() and 1 <= int(times) <= 64)):
                raise ConfigError(
                    f"device is {text!r}; allowed: auto, cpu, cpu*2, cuda, cuda:0, cuda:0,cuda:1"
                )
            found += ["cuda:0" if name == "cuda" else name] * (int(times) if star else 1)
        return found

    def identity(self) -> dict[str, Any]:
        """The settings that make a round what it is; a run folder keeps to them."""
        names = ("players", "cards", "trump", "dealer", "opponents", "root", "target",
                 "noise_fraction", "noise_alpha", "temperature", "temperature_decisions", "rivalry",
                 "evaluator", "seed")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        search = self.search()
        settings |= {
            "unit": "round" if self.games is None else "game",
            "determinizations": search.determinizations,
            "simulations": search.simulations,
            "leaves_in_flight": search.to_core().wave_leaves,
            "record_version": _core.RECORD_VERSION,
        }
        return settings


def _has_cuda() -> bool:
    """Whether there is an NVIDIA device, without importing torch."""
    return Path("/dev/nvidia0").exists() or Path("/dev/nvidiactl").exists()


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file; keys are SelfPlayConfig's fields, with - or _."""
    settings = _read_settings(path, SelfPlayConfig)
    for key in ("checkpoint", "out"):
        if isinstance(settings.get(key), str):
            settings[key] = Path(settings[key])
    return settings


def _read_settings(path: Path, kind: type[SelfPlayConfig] | type[TrainConfig]) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text())
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


def to_toml(settings: Mapping[str, Any]) -> str:
    """Flat settings as TOML; None is left out."""

    def literal(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (int, float)):
            return repr(value)
        text = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'

    return "".join(f"{key} = {literal(value)}\n" for key, value in settings.items() if value is not None)


NetName = Literal["plan", "small", "quick"]


@dataclass(frozen=True)
class TrainConfig:
    """A training run: self-play, learner and matches at once, for a given time or number of rounds."""

    minutes: float | None = 2.0
    """Wall time to train, from the command's start; the time between sessions is not counted."""
    rounds: int | None = None
    """Rounds to play; with minutes as well, whichever comes first."""
    players: str = "4"
    """Number of players: 4, 3-6, or with weights 4:15,5:70,6:15."""
    cards: str = "5"
    """Cards dealt to each, written likewise."""
    trump: str = "random"
    dealer: str = "random"
    targets: Literal["critic", "visits", "improved"] = "critic"
    """What the policy learns from: a critic that sees the deal, or of the search the visit counts or the
    prior improved by Q."""
    search: str = "0"
    """Worlds x simulations of self-play by stages of equal length: 0 (the policy itself), 3x30, or
    1x15,2x25,3x35."""
    random_moves: float = 0.03
    """Share of uniform moves; with a search the share of noise in its root."""
    net: NetName = "quick"
    critic_net: NetName = "quick"
    """Sizes of the critic, one trunk."""
    buffer: int = 150_000
    """Newest positions, which batches are drawn from."""
    batch: int = 1024
    replay_ratio: float = 1.0
    """How often a position is seen on average; the faster of self-play and learner waits."""
    learning_rate: float = 2e-3
    """At first; falls to a hundredth as a cosine over the run."""
    weight_decay: float = 1e-4
    clip: float = 1.0
    """Largest norm of a gradient."""
    entropy_first: float = 0.05
    """Weight of the policy's entropy at the start; critic targets only."""
    entropy_last: float = 0.002
    value_weight: float = 1.0
    value_share: float = 0.25
    """Share of a batch that trains the value as well; a policy that plays without a search needs little."""
    ema: float = 0.99
    """Decay of the average of the weights, a step; the average is what plays."""
    autocast: bool = True
    """Matrix products of the learner in bfloat16."""
    publish_s: float = 1.0
    """Self-play gets new weights so often."""
    checkpoint_s: float = 20.0
    """A checkpoint and the learner's state are kept so often: what a kill can cost."""
    closing_s: float = 1.5
    """Taken off the minutes for saving at the end."""
    evaluate_s: float = 30.0
    """A match against each opponent so often, and one at the end; 0 plays only the last."""
    opponents: str = "threshold"
    """Built-in opponents of the matches, with commas; empty for none."""
    deals: int = 250
    """Deals of a match during the run, each played from every seat; 1000 at the end."""
    device: str = "auto"
    """Of self-play: auto, cpu, cpu*2, cuda, cuda:0,cuda:1."""
    learner: str = "auto"
    """Device of the learner: auto, cpu, cuda, cuda:1."""
    learner_threads: int = 1
    workers: int | None = None
    lanes: int | None = 2048
    """Rounds that a worker plays at once (None: so that the batches are full)."""
    max_batch: int | None = 1024
    compile: bool = False
    """Serve a compiled network as soon as it is ready; worth it in long runs."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(self)
        if self.minutes is None and self.rounds is None:
            raise ConfigError("minutes and rounds are both unset; allowed: at least one of them")
        limits: tuple[tuple[str, float, float], ...] = (
            ("minutes", 0.05, 1e6), ("rounds", 1, 10**12), ("random_moves", 0, 1), ("buffer", 1024, 10**9),
            ("batch", 1, 2**20), ("replay_ratio", 0.01, 100), ("learning_rate", 1e-8, 1),
            ("weight_decay", 0, 1), ("clip", 1e-6, 1e6), ("entropy_first", 0, 10), ("entropy_last", 0, 10),
            ("value_weight", 0, 100), ("value_share", 0, 1), ("ema", 0, 0.999999), ("publish_s", 0.01, 3600),
            ("checkpoint_s", 0.1, 86_400), ("closing_s", 0, 60), ("evaluate_s", 0, 10**6),
            ("deals", 2, 10**6), ("learner_threads", 1, 1024), ("lanes", 1, 10**6),
        )
        for name, low, high in limits:
            value = getattr(self, name)
            if value is not None:
                _check(name, value, low, high)
        _choice("targets", self.targets, ("critic", "visits", "improved"))
        _choice("net", self.net, NETS)
        _choice("critic_net", self.critic_net, NETS)
        if self.targets != "critic" and 0 in (simulations for _, simulations in self.stages()):
            raise ConfigError(
                f"targets is {self.targets!r} with a search of 0 simulations; allowed: for example --search 3x30"
            )
        for stage in range(len(self.stages())):
            self.self_play(stage, None)

    def stages(self) -> list[tuple[int, int]]:
        """(worlds, simulations) of each stage of self-play."""
        found = []
        for part in self.search.split(","):
            worlds, times, simulations = part.partition("x")
            if part == "0":
                found.append((1, 0))
            elif times and worlds.isdecimal() and simulations.isdecimal() and int(worlds) and int(simulations):
                found.append((int(worlds), int(simulations)))
            else:
                raise ConfigError(f"search is {self.search!r}; allowed: 0, 3x30, or stages as 1x15,2x25,3x35")
        return found

    def stage(self, done: float) -> int:
        """The stage in which the share `done` of the run falls."""
        return min(int(done * len(self.stages())), len(self.stages()) - 1)

    def self_play(self, stage: int, checkpoint: Path | None) -> SelfPlayConfig:
        """The settings of self-play in a stage."""
        worlds, simulations = self.stages()[stage]
        device = self.device
        if device == "auto":
            device = "cuda" if _has_cuda() else "cpu"
        return SelfPlayConfig(
            players=self.players, cards=self.cards, trump=self.trump, dealer=self.dealer,
            determinizations=worlds, simulations=simulations, noise_fraction=self.random_moves,
            target="improved" if self.targets == "improved" else "visits",
            workers=self.workers, lanes=self.lanes, device=device,
            inference_threads=1, precision=self.precision, compile=self.compile,
            max_batch=self.max_batch, net=self.net, checkpoint=checkpoint, seed=self.seed,
        )

    def learner_device(self) -> str:
        """Where the learner computes, as torch names it."""
        if self.learner == "auto":
            return "cuda:0" if _has_cuda() else "cpu"
        return self.learner

    def identity(self) -> dict[str, Any]:
        """The settings that make a run what it is; a run folder keeps to them."""
        free = ("minutes", "rounds", "publish_s", "checkpoint_s", "closing_s", "evaluate_s", "opponents", "deals",
                "device", "learner", "learner_threads", "workers", "lanes", "max_batch", "compile", "precision",
                "autocast")
        settings = {name: value for name, value in asdict(self).items() if name not in free}
        return settings | {"record_version": _core.RECORD_VERSION, "feature_version": _core.FEATURE_VERSION}


PLAN_PLAYERS = "4:15,5:70,6:15"

TRAIN_PRESETS: dict[str, TrainConfig] = {
    "smoke": TrainConfig(),
    "laptop": TrainConfig(
        minutes=60, net="small", critic_net="small", buffer=500_000, compile=True, checkpoint_s=120,
        evaluate_s=300, opponents="threshold,mc90",
    ),
    "workstation": TrainConfig(
        minutes=600, players="3-8", cards="1-8", net="small", critic_net="small", buffer=2_000_000, batch=4096,
        lanes=8192, max_batch=None, compile=True, publish_s=5, checkpoint_s=600, evaluate_s=1800,
        opponents="threshold,mc90,mc900",
    ),
    "plan": TrainConfig(
        minutes=None, rounds=4_920_000, players=PLAN_PLAYERS, cards="1-8", targets="visits",
        search="1x15,2x25,3x35,4x45,5x50", random_moves=0.25, net="plan", buffer=500_000, batch=512, replay_ratio=4,
        learning_rate=1e-3, value_share=1.0, ema=0.999, lanes=None, max_batch=None, compile=True, publish_s=10,
        checkpoint_s=600, evaluate_s=1800, opponents="threshold,mc90",
    ),
}
"""Settings by name. `plan`: 500 iterations of 10,000 rounds, after a ramp of 20 from 2,000 on."""


def read_train_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file; keys are TrainConfig's fields, with - or _.

    A file that names rounds and no minutes is of a run without a time.
    """
    settings = _read_settings(path, TrainConfig)
    return {"minutes": None} | settings if "rounds" in settings else settings
