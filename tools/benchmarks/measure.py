"""What every benchmark shares: results, repeats that take turns, rows of real rounds."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shmzero import SearchConfig, _core, play_rounds
from shmzero.mcts.evaluators import HashEvaluator

PLAN_ROUNDS_PER_MIN = 36.7
"""Of the design that this one replaces: 32 workers, RTX 4060, 90 simulations a decision, 4 players, 5 cards."""


@dataclass
class Result:
    """One line of the output. `low` and `high` are the extremes of the repeats, where there were some."""

    name: str
    value: float | str
    unit: str = ""
    goal: str = ""
    low: float | None = None
    high: float | None = None

    def line(self) -> str:
        spread = "" if self.low is None or self.high is None else f"{figure(self.low)} .. {figure(self.high)}"
        return f"{self.name:<46} {figure(self.value):>14} {self.unit:<14} {self.goal:<18} {spread}".rstrip()


def figure(value: float | str) -> str:
    """A value as people read it."""
    if isinstance(value, str):
        return value
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


@dataclass(frozen=True)
class Spread:
    """A figure's repeats in the order in which they were measured, their median and their extremes."""

    figures: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def low(self) -> float:
        return min(self.figures)

    @property
    def high(self) -> float:
        return max(self.figures)

    def result(self, name: str, unit: str = "", goal: str = "") -> Result:
        return Result(name, self.median, unit, goal, self.low, self.high)


def interleaved(bodies: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Spread]:
    """Each body's figure over rounds in which every body runs once: what disturbs one disturbs all."""
    figures: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(repeats):
        for name, body in bodies.items():
            figures[name].append(body())
    return {name: Spread(tuple(got)) for name, got in figures.items()}


def ratio(name: str, over: Spread, under: Spread, goal: str = "") -> Result:
    """The median of ratios taken within repeats: steadier than a ratio of medians."""
    ratios = [a / b for a, b in zip(over.figures, under.figures, strict=True)]
    return Result(name, statistics.median(ratios), "", goal, min(ratios), max(ratios))


def real_rows(count: int) -> tuple[NDArray[np.float16], NDArray[np.uint64]]:
    """(features [count, 256], masks [count]) of decisions of real rounds, repeated where they are few."""
    records = play_rounds(HashEvaluator(), 400, SearchConfig(determinizations=1, simulations=8), seed=5)
    rows = _core.replay(records)
    take = np.arange(count) % len(rows["masks"])
    return rows["features"][take], rows["masks"][take]


def windowed(calls: Callable[[], int], seconds: float) -> float:
    """Rows a second of `calls()`, each of which returns its rows, up to the last that ended within `seconds`.

    What ends later does not count; where nothing ended in time, it is the one call that took longer.
    """
    start = time.perf_counter()
    rows, counted_s = 0, 0.0
    while True:
        more = calls()
        spent = time.perf_counter() - start
        if spent <= seconds or not rows:
            rows, counted_s = rows + more, spent
        if spent >= seconds:
            return rows / counted_s


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """What is started within does not hear a Ctrl-C: it is this process that ends its children."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
