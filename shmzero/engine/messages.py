"""What a worker is told when it starts. While it plays, it and its parent exchange grants and frames only."""

from __future__ import annotations

from dataclasses import dataclass

from shmzero.game.deals import Deals
from shmzero.mcts.config import SearchConfig
from shmzero.processes.messages import Message


@dataclass(frozen=True)
class WorkerSpec(Message):
    """How the process is to be started."""

    segment_fd: int
    grant_fd: int
    record_fd: int
    worker: int
    lanes: int
    spin_us: float
    search: SearchConfig
    deals: Deals
    seed: int
    games: bool
    """Whether a unit is a whole game."""
    opponent_pool: str
