"""What the process that plays matches is told when it starts, and what it tells its parent.

Events: process.py sends them, training/match_runner.py acts on them. How to add one is in CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shmzero.matches.words import Mode
from shmzero.processes.messages import Kinds, Message


@dataclass(frozen=True)
class MatchesSpec(Message):
    """Which matches to play, and how."""

    control_fd: int
    pulse_fd: int
    checkpoint: Path
    opponents: tuple[str, ...]
    modes: tuple[Mode, ...]
    """Each opponent is met in each of them: see words.py, SEATS."""
    deals: int
    """Of a match; with whole games that many games."""
    deals_rated: int
    """The same of a match for the rating."""
    players: str
    cards: str
    trump: str
    games: bool
    niceness: int
    rate: bool
    """Whether to rate the checkpoint after the matches."""
    threads: int


@dataclass(frozen=True)
class MatchPlayed(Message):
    """The result of a match. Points are a round's, the interval is that of 95 %."""

    opponent: str
    mode: Mode
    games: bool
    deals: int
    mean: float
    low: float
    high: float
    exact_bid: dict[int, float]
    """By hand size."""
    win_share: float
    fair_share: float
    steps: int
    """Of the checkpoint that played."""
    seconds: float


@dataclass(frozen=True)
class AgentRating:
    """The rating of one agent and its interval of 95 %."""

    rating: float
    low: float
    high: float


@dataclass(frozen=True)
class CheckpointRated(Message):
    """The rating of a checkpoint, and of all that it was rated beside."""

    steps: int
    deals: int
    rating: float
    low: float
    high: float
    agents: dict[str, AgentRating]


Event = MatchPlayed | CheckpointRated
EVENTS: Kinds[Event] = Kinds(MatchPlayed, CheckpointRated)

COMMANDS: Kinds[Message] = Kinds()
"""The process is told nothing while it plays."""
