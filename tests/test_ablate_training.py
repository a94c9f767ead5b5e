"""tools/ablate_training.py: its statistics, and a tiny run of two arms that is stopped and goes on."""

from __future__ import annotations

import numpy as np
import pytest

from tools import ablate_training
from tools.ablate_training import ARMS, BASE, Ablation, Arm, crossed, holm, t_quantile, two_sided_p


def test_student_against_tables() -> None:
    assert t_quantile(4) == pytest.approx(2.776, abs=1e-3) and t_quantile(1) == pytest.approx(12.706, abs=1e-3)
    assert two_sided_p(2.228, 10) == pytest.approx(0.05, abs=1e-4)


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_crossed_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Seeds of both sides differ by themselves; every match adds noise of its own."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        scores = 0.2 + rng.normal(0, 0.2, (5, 1)) - rng.normal(0, 0.1, (1, 5)) + rng.normal(0, 0.05, (5, 5))
        found = crossed(scores)
        covered += found.low < 0.2 < found.high
    assert 0.92 < covered / 400 < 0.995


def test_ablation_of_two_arms_goes_on_where_it_stopped(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(ablate_training.ARMS, "tricks head", Arm(("--tricks-weight", "0.5")))
    tiny = ("--cards", "2", "--players", "3", "--lanes", "128", "--batch", "256", "--rounds", "1200", "--evaluate-s", "0")
    ablation = Ablation(tmp_path, 5, 20, tiny)
    arms, seeds = [BASE, "fixed suits", "tricks head"], range(2)
    for seed in seeds:
        for arm in arms:
            ablation.train(arm, seed)
    for arm in arms:
        ablation.play(arm, 0, seeds)
    before = ablation.matches()
    calls: list[str] = []
    real = ablate_training._module
    monkeypatch.setattr(ablate_training, "_module", lambda *a: calls.append(a[1][0]) or real(*a))
    for arm in arms:
        for seed in seeds:
            ablation.play(arm, seed, seeds)
    assert ablation.matches()[: len(before)] == before and len(calls) == 3  # seed 1 of each arm only
    results = {result.name: result for result in ablation.results(arms, seeds)}
    assert set(results) == {
        *(f"{arm}: against threshold" for arm in arms),
        "fixed suits against base", "fixed suits against base: p, corrected",
        "tricks head against base", "tricks head against base: p, corrected",
    }  # fmt: skip
    head = results["tricks head against base"]
    assert head.low < head.value < head.high
    assert set(ARMS) > {BASE, "visits", "solver leaves", "rivalry 1"}
