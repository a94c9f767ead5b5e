"""What a run says of its rates before, when and after its first row is answered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.interface import NodeReport
from shmzero.engine.progress import Meter


class Clocked:
    """A fleet of one worker and one inference process in a time of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.waits = False
        self.plan = SimpleNamespace(config=SelfPlayConfig())
        self.num_workers = self.num_servers = 1
        self._counters = dict.fromkeys(("rows", "batches", "decisions", "busy_ns", "worker_busy_ns"), 0)
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def counters(self) -> dict[str, int]:
        return dict(self._counters)

    def by_node(self) -> dict[str, NodeReport]:
        return {}

    def passes(self, seconds: float, **gained: int) -> None:
        """Let time pass in which the counters grow."""
        self.now += seconds
        for name, number in gained.items():
            self._counters[name] += number


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Any:
    return Clocked(monkeypatch)


def test_shares_and_rates_are_zero_until_the_first_row_is_answered(fleet: Any) -> None:
    meter = Meter(fleet, 10)
    for _ in range(3):
        fleet.passes(1.0, worker_busy_ns=900_000_000)  # it prepares rows while the inference process loads
        progress = meter.progress(0, 0)
        assert progress.workers_busy == progress.inference_busy == progress.evaluations_per_s == 0
    assert "inference 0% workers 0% busy" in progress.line()


@pytest.mark.parametrize("attended", [False, True])
def test_shares_count_nothing_of_before_the_first_row(fleet: Any, attended: bool) -> None:
    meter = Meter(fleet, 10)
    fleet.passes(5.0, worker_busy_ns=5_000_000_000)
    meter.progress(0, 0)
    fleet.passes(0.08, worker_busy_ns=80_000_000)
    if attended:
        meter.attend()
    fleet.passes(0.5, worker_busy_ns=250_000_000, busy_ns=100_000_000, rows=50, batches=1)
    progress = meter.progress(0, 1)
    played_s = 0.5 if attended else 0.58
    assert progress.workers_busy == pytest.approx((0.25 if attended else 0.33) / played_s)
    assert progress.inference_busy == pytest.approx(0.1 / played_s)
    assert progress.evaluations_per_s == pytest.approx(50 / played_s)


def report(rounds_per_s: float, version_lag: int = 0, restarts: int = 0, is_lost: bool = False) -> NodeReport:
    return NodeReport(1000, rounds_per_s, version_lag, restarts, 0, 0, is_lost)


def test_line_says_how_the_nodes_are_where_several_machines_play(fleet: Any) -> None:
    progress = Meter(fleet, 10).progress(0, 0)
    assert "node" not in progress.line() and "nodes" not in progress.as_metrics()
    progress.nodes = {"a": report(1500.4), "b": report(20, version_lag=2, restarts=1), "c": report(0, is_lost=True)}
    assert "| 2 nodes (1,500 + 20 rounds/s), 1 lost, 2 versions behind, 1 restarts | ETA" in progress.line()
    assert progress.as_metrics()["nodes"]["b"]["version_lag"] == 2
    progress.nodes = {"a": report(3)}
    assert "| 1 node (3 rounds/s), 0 restarts | ETA" in progress.line()
