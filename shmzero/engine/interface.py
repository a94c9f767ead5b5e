"""What a run asks of who plays its rounds: the fleet of this machine, or another engine that keeps the same promises.

A run makes its engine by a StartEngine, which is the class Fleet unless its caller has another one. Read next:
fleet.py, and runs/recorder.py for what a run does with the rounds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from shmzero.engine.plan import FleetPlan
from shmzero.engine.weights import Weights
from shmzero.runs.recorder import Executor


@dataclass(frozen=True)
class NodeReport:
    """How one of several machines is that play together, for metrics and summaries."""

    rounds: int
    rounds_per_s: float
    version_lag: int
    """How many versions its weights are behind those that were published last."""
    restarts: int
    """Processes of it that died and were replaced."""
    bytes_up: int
    """Of records that came from it."""
    bytes_down: int
    """Of checkpoints that went to it."""
    is_lost: bool = False
    """Whether it was lost and plays no more."""


class Engine(Executor, Protocol):
    """An executor that plays with weights which change, and tells how it goes. Use as a context manager."""

    plan: FleetPlan
    """What it plays."""
    events: deque[str]
    """Lines for people; whoever shows them takes them out."""
    paused: bool
    """While set, no further units are begun; those in progress go on."""

    def notices(self) -> list[str]:
        """What a run says of it before it plays."""

    # --- weights ------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version of the weights that were published last, be they taken or refused."""

    @property
    def served(self) -> Weights:
        """The newest weights that an inference process has taken."""

    def publish(self, path: Path, version: int | None = None) -> int:
        """Serve the weights of a checkpoint from the next batch on; returns their version.

        The version is the next one, or `version` where that is higher. What cannot be used is refused with a line
        in `events`, and what was served before stays.
        """

    def seat_other(self, path: Path) -> None:
        """Let a checkpoint's network hold the seats that the opponent pool gives to one, from the next batch on."""

    # --- how it goes --------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether its inference processes serve; one that is starting still has to read its weights."""

    @property
    def waits(self) -> bool:
        """Whether it is paused and has finished all that was begun: nobody plays."""

    @property
    def num_workers(self) -> int:
        """Worker processes."""

    @property
    def num_servers(self) -> int:
        """Inference processes."""

    @property
    def restarts(self) -> int:
        """Processes that died and were replaced."""

    def counters(self) -> dict[str, int]:
        """Sums over all workers (prefix `worker_` for times and rows) and inference processes since the start."""

    def by_node(self) -> dict[str, NodeReport]:
        """How each machine is, by its name; empty where there is only this one."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class StartEngine(Protocol):
    """Starts an engine."""

    def __call__(
        self,
        plan: FleetPlan,
        units: Iterator[int],
        num_units: int,
        version: int,
        in_progress: Mapping[int, list[bytes]],
    ) -> Engine:
        """`units` yields the ids to play, `num_units` is how many there are; `version` is that of the plan's weights.

        `in_progress` has the first rounds' records of games that it shall go on with.
        """
