"""Settings of a training run's matches and of the arena: defaults and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from shmzero.errors import ConfigError
from shmzero.game.deals import DealRules
from shmzero.machine import cores
from shmzero.settings import Settings, setting

MOST_DEALS = 10**7
"""The most deals of one match or rating."""


@dataclass(frozen=True)
class Matches(Settings):
    """The matches of a training run, which say how strong it is."""

    title: ClassVar[str] = "matches"

    evaluate_s: float = setting(30.0, low=0, high=10**6, free=True, usual=True)
    """A match against each opponent so often, and one at the end; 0 plays only the last."""
    match_opponents: str = setting("threshold", free=True)
    """Built-in opponents of the matches, with commas; empty for none."""
    deals: int = setting(250, low=2, high=10**6, free=True)
    """Deals of a match during the run, each played from every seat; 1000 at the end."""
    rating: bool = setting(False, free=True)
    """With the matches, rate the newest checkpoint, older ones and the opponents together: ratings.json."""
    gate: bool = False
    """Self-play gets only checkpoints that beat the one it has: the match's whole interval above 0."""

    def opponents(self) -> list[str]:
        """The bots of the matches."""
        return [name for name in self.match_opponents.split(",") if name]


@dataclass(frozen=True)
class Rating(Settings):
    """A rating of all agents, in place of matches."""

    title: ClassVar[str] = "rating"

    rating: bool = setting(False, usual=True)
    """Rate all agents together, at mixed tables (Plackett-Luce, on Elo's scale)."""
    out: Path | None = setting(None, usual=True)
    """Folder that gets the ratings as ratings.json; without it they are only printed."""


@dataclass(frozen=True)
class FreshSeat(Settings):
    """A seat that learns to play against one agent, in place of matches."""

    title: ClassVar[str] = "exploit"

    exploit: Path | None = setting(None, usual=True)
    """A checkpoint or a training run's folder: a fresh seat learns to play against copies of its policy. What the
    seat gains is a lower bound on how exploitable the policy is."""
    minutes: float = setting(3.0, low=1e-3, high=1e6, usual=True)
    """Time that the fresh seat learns for."""


@dataclass(frozen=True)
class ArenaConfig(Settings):
    """What the arena plays, besides the agents. No setting is required.

    `ArenaConfig.of(deals=100, players="3-6")` makes one out of flat names.
    """

    title: ClassVar[str] = "match"
    old_names: ClassVar[Mapping[str, str]] = {"games": "whole_games"}

    deals: int = setting(1000, low=2, high=MOST_DEALS, usual=True)
    """Deals of each match, or of the rating; every one is played in each rotation of the seats."""
    mode: Literal["one", "rest", "both"] = setting("both", usual=True)
    """one: a hero among villains; rest: a villain among heroes; both: two matches."""
    whole_games: bool = setting(False, usual=True)
    """Play whole games instead of single rounds; a deal is then a game."""
    dealt: DealRules = field(default=DealRules())
    pool: Rating = field(default=Rating())
    fresh_seat: FreshSeat = field(default=FreshSeat())
    seed: int = 0
    """Seed of deals, bots and learning: the same seed gives the same deals."""
    threads: int | None = setting(None, low=1, high=1024)
    """Threads for bots, networks and learning. Without it one for each core."""
    device: str = "cpu"
    """Device of the checkpoints and of the learning: cpu, cuda, cuda:1."""
    json: bool = False
    """Print one JSON object at the end and nothing else on standard output."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        if self.pool.out and not self.pool.rating:
            raise ConfigError("--out is set without --rating; it is where ratings.json goes")
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"device is {self.device!r}; allowed: cpu, cuda, cuda:1")

    def resolved(self) -> ArenaConfig:
        """The settings with nothing left open that this machine decides."""
        return self.but(threads=self.threads or cores(), device="cuda:0" if self.device == "cuda" else self.device)
