"""The gate without matches: who has to play, and who gets through."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from shmzero.matches.messages import MatchPlayed
from shmzero.runs.checkpoints import checkpoint_path
from shmzero.training.gate import Gate


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def save(run: Path, steps: int) -> Path:
    path = checkpoint_path(run, steps)
    path.touch()
    return path


def test_first_checkpoint_passes_without_a_match_and_later_ones_are_tried_once(run: Path) -> None:
    gate = Gate(run)
    assert not gate.has_challenger() and gate.best_path() is None
    first = save(run, 5)
    assert gate.has_challenger() and gate.try_challenger() is None and gate.best_path() == first
    assert not gate.has_challenger()
    save(run, 7)
    assert gate.has_challenger() and gate.try_challenger() == first and not gate.has_challenger()


@pytest.mark.parametrize(("low", "passes"), [(0.1, True), (1e-12, False), (-0.1, False)])
def test_checkpoint_passes_where_even_the_low_end_of_its_interval_is_won(run: Path, low: float, passes: bool) -> None:
    gate = Gate(run)
    gate.recall([{"gate": {"steps": 5, "version": 1}}, {"gate": {"steps": 6, "version": 2}}])
    match = MatchPlayed("best:policy", "gate", False, 100, 0.2, low, 0.3, {}, 0.5, 0.5, steps=9, seconds=1.0)
    gate.judge(match)
    gate.judge(dataclasses.replace(match, mode="one", steps=11, low=5.0))
    assert gate.best == (9 if passes else 6) and gate.best_version == 2
