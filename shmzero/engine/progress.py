"""How a run of self-play goes: rates and shares out of the engine's counters."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from shmzero import _core
from shmzero.engine.interface import Engine, NodeReport


@dataclass
class Progress:
    """Where a run stands. Rates and shares are over the last minute in which it played, 0 until it has."""

    units: int
    total_units: int
    decided_units: float
    """Units' worth of decisions made, an estimate: all there is to go by before the first unit is finished."""
    rounds: int
    elapsed_s: float
    rounds_per_min: float
    evaluations_per_s: float
    mean_batch_rows: float
    inference_busy: float
    workers_busy: float
    nodes: dict[str, NodeReport] = dataclasses.field(default_factory=dict)
    """How each machine is, where several play."""

    def as_metrics(self) -> dict[str, Any]:
        """The line of metrics.jsonl, where `decided_units` is called `begun`."""
        line = dataclasses.asdict(self)
        if not self.nodes:
            del line["nodes"]
        return {"begun" if name == "decided_units" else name: value for name, value in line.items()}

    @property
    def eta_s(self) -> float | None:
        done = self.units or self.decided_units
        if done == 0 or self.elapsed_s <= 0:
            return None
        return max(0.0, self.total_units - done) * self.elapsed_s / done

    def line(self) -> str:
        eta = "?" if self.eta_s is None else f"{self.eta_s:.0f} s"
        return (
            f"{self.rounds} rounds | {self.rounds_per_min:,.0f} rounds/min | "
            f"{self.evaluations_per_s:,.0f} evaluations/s | batch {self.mean_batch_rows:.0f} | "
            f"inference {self.inference_busy:.0%} workers {self.workers_busy:.0%} busy | {self.nodes_words()}ETA {eta}"
        )

    def nodes_words(self) -> str:
        """How the machines are, where several play, and what separates that from what follows."""
        if not self.nodes:
            return ""
        playing = [report for report in self.nodes.values() if not report.is_lost]
        rates = " + ".join(f"{report.rounds_per_s:,.0f}" for report in playing)
        behind = max((report.version_lag for report in playing), default=0)
        words = [
            f"{len(playing)} node{'s' * (len(playing) != 1)}" + (f" ({rates} rounds/s)" if playing else ""),
            *([f"{len(self.nodes) - len(playing)} lost"] if len(playing) < len(self.nodes) else []),
            *([f"{behind} versions behind"] if behind else []),
            f"{sum(report.restarts for report in self.nodes.values())} restarts | ",
        ]
        return ", ".join(words)


class Every:
    """Tells when something that is done again and again is due."""

    def __init__(self, seconds: float, at_once: bool = False) -> None:
        """It is due for the first time after so many seconds, or `at_once`."""
        self.seconds = seconds
        self._at = -math.inf if at_once else time.monotonic()

    def __call__(self) -> bool:
        """Whether it is due; if so, then not again for so many seconds from now on."""
        now = time.monotonic()
        if now - self._at < self.seconds:
            return False
        self._at = now
        return True


class Meter:
    """Turns the engine's counters into Progress."""

    WINDOW_S = 60.0

    def __init__(self, engine: Engine, total_units: int) -> None:
        self._engine = engine
        self._total_units = total_units
        self._unit_decisions = decisions_in_a_unit(engine.plan.config.play_settings())
        self.start = time.monotonic()
        self.played_s = 0.0
        """Since the first row was answered, without what follows."""
        self.waited_s = 0.0
        """Seconds in which the engine waited, being paused."""
        self.waits_since: float | None = None
        """Since when it does, by time.monotonic()."""
        self._began = False
        self._looked_at = self.start
        self._samples: deque[tuple[float, int, dict[str, int]]] = deque([(0.0, 0, engine.counters())])

    @property
    def waits(self) -> float:
        """Share of the time in which the engine waited."""
        return self.waited_s / max(self.waited_s + self.played_s, 1e-9)

    def attend(self) -> None:
        """Note whether the engine plays or waits. To be called often."""
        now = time.monotonic()
        passed_s, self._looked_at = now - self._looked_at, now
        if not self._began:
            self._note_the_first_row()
        if self._engine.waits:
            self.waited_s += passed_s
            self.waits_since = now if self.waits_since is None else self.waits_since
        else:
            self.played_s += passed_s if self._began else 0.0
            self.waits_since = None

    def _note_the_first_row(self) -> None:
        """Note whether a row has been answered. What the counters gained until the last look before is not counted."""
        counters = self._engine.counters()
        self._began = counters["rows"] > 0
        if not self._began:
            self._samples[0] = (0.0, 0, counters)

    def progress(self, units: int, rounds: int) -> Progress:
        """The state at this moment, when so many `units` are finished, and so many `rounds` of them and of others."""
        self.attend()
        now, counters = self._looked_at, self._engine.counters()
        if len(self._samples) > 1 and self._samples[-1][0] == self.played_s:
            self._samples.pop()  # it has not played since
        if self._began:
            self._samples.append((self.played_s, rounds, counters))
        while len(self._samples) > 2 and self.played_s - self._samples[1][0] > self.WINDOW_S:
            self._samples.popleft()
        then, rounds_then, before = self._samples[0]
        gained = {name: counters[name] - before[name] for name in counters}
        per_second = 1.0 / (self.played_s - then) if self.played_s > then else 0.0
        return Progress(
            units=units,
            total_units=self._total_units,
            decided_units=counters["decisions"] / self._unit_decisions,
            rounds=rounds,
            elapsed_s=now - self.start,
            rounds_per_min=(rounds - rounds_then) * 60 * per_second,
            evaluations_per_s=gained["rows"] * per_second,
            mean_batch_rows=gained["rows"] / max(gained["batches"], 1),
            inference_busy=gained["busy_ns"] / 1e9 * per_second / max(self._engine.num_servers, 1),
            workers_busy=gained["worker_busy_ns"] / 1e9 * per_second / max(self._engine.num_workers, 1),
            nodes=self._engine.by_node(),
        )


def decisions_in_a_unit(play: _core.PlaySettings) -> float:
    """About how many on average: a bid and all cards but the last, which is forced, of each seat."""
    decisions = weights = 0.0
    for players, share in play.players:
        for cards, other_share in play.cards:
            if cards * players <= _core.NUM_CARDS:
                sizes = play.rules.hand_sizes(players, cards) if play.games else [cards]
                weights += share * other_share
                decisions += share * other_share * players * sum(sizes)
    return decisions / weights
