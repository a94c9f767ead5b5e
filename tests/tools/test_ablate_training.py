"""tools/ablate_training.py: its statistics, and a tiny run of two arms that is stopped and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shmzero.runs.checkpoints import newest_checkpoint
from tools import ablate_training
from tools.ablate_training import ARMS, BASE, Ablation, Arm
from tools.benchmarks.intervals import crossed, holm, t_quantile, two_sided_p


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


TINY = ("--cards", "2", "--players", "3", "--lanes", "128", "--batch", "256", "--rounds", "1200", "--evaluate-s", "0")


@pytest.mark.slow
def test_ablation_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ablate_training.ARMS, "tricks head", Arm(("--tricks-weight", "0.5")))
    ablation = Ablation(tmp_path, 5, 20, TINY)
    arms, seeds = [BASE, "fixed suits", "tricks head"], range(2)
    for seed in seeds:
        for arm in arms:
            ablation.train(arm, seed)
    for arm in arms:
        ablation.play(arm, 0, seeds)
    with (tmp_path / "matches.jsonl").open("a") as file:
        file.write('{"way": "policy", "ar')  # a kill cut it off
    before = ablation.means()
    calls: list[list[str]] = []
    real = ablate_training._module
    monkeypatch.setattr(ablate_training, "_module", lambda *a: calls.append(a[1]) or real(*a))
    for arm in arms:
        for seed in seeds:
            ablation.play(arm, seed, seeds)
    after = ablation.means()
    assert before.items() <= after.items() and len(before) == 5
    assert len(calls) == 5 and all(f"-{1}/" in call[0] for call in calls)  # seed 1 of each arm only
    dealt = [call[call.index("--seed") + 1] for call in calls]
    assert len(set(dealt)) == len(dealt)  # each pair has its own
    results = {result.name: result for result in ablation.results(arms, seeds)}
    assert set(results) == {
        *(f"{arm}: against threshold" for arm in arms),
        "fixed suits against base", "fixed suits against base: p, corrected",
        "tricks head against base", "tricks head against base: p, corrected",
    }  # fmt: skip
    head = results["tricks head against base"]
    assert isinstance(head.value, float) and head.low is not None and head.high is not None
    assert head.low < head.value < head.high
    assert Ablation(tmp_path, 4, 20, TINY).folder == tmp_path and not Ablation(tmp_path, 5, 21, TINY).means()
    assert ablation.run_folder(BASE, 0) != Ablation(tmp_path, 4, 20, TINY).run_folder(BASE, 0)
    newest = newest_checkpoint(ablation.run_folder(BASE, 0))
    assert newest is not None
    newest.rename(newest.with_name("99999999.safetensors"))  # it was trained further: its matches are stale
    assert {pairing for pairing in after if pairing not in ablation.means()} == {
        ("policy", BASE, 0, "threshold", 0), ("policy", "tricks head", 0, BASE, 0), ("policy", "tricks head", 1, BASE, 0),
    }  # fmt: skip


def test_jobs_at_once_have_cores_of_their_own() -> None:
    cores = os.sched_getaffinity(0)
    number = min(2, len(cores))
    meet, seen = threading.Barrier(number), []

    def job() -> None:
        ask = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
        seen.append(set(map(int, subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split())))
        meet.wait(30)

    ablate_training.run_jobs([job] * number, number)
    assert [len(share) for share in seen] == [len(cores) // number] * number
    assert len(set.union(*seen)) == sum(map(len, seen)) and set.union(*seen) <= cores
    assert os.sched_getaffinity(0) == cores


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two at once")
def test_job_that_fails_ends_the_others() -> None:
    failed, begun = threading.Event(), []

    def fail() -> None:
        failed.set()
        raise OSError("no")

    def last() -> None:
        begun.append(1)
        failed.wait(30)
        time.sleep(0.05)

    with pytest.raises(OSError, match="no"):
        ablate_training.run_jobs([last, fail, *[last] * 500], 2)
    assert len(begun) < 500


def test_arm_of_another_rule_meets_the_same_search_by_its_own_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation, calls = Ablation(tmp_path, 5, 20), []
    for arm in ("visits", "solver leaves"):
        (ablation.run_folder(arm, 0) / "checkpoints").mkdir(parents=True)
        (ablation.run_folder(arm, 0) / "checkpoints" / "00000007.safetensors").touch()

    def played(name: str, arguments: list[str], arm: Arm) -> str:
        calls.append([word.rpartition(":")[2] for word in arguments[:2]])
        return json.dumps({"matches": [{"mean": len(calls)}, {"mean": len(calls)}]})

    monkeypatch.setattr(ablate_training, "_module", played)
    ablation.play("solver leaves", 0, [0])
    assert calls == [["policy", "threshold"], ["policy", "policy"], ["3x30+solver8", "3x30"]]
    assert ablation.means()["3x30", "solver leaves", 0, "visits", 0] == 3
    assert set(ARMS) > {BASE, "visits", "solver leaves", "rivalry 1"}
    assert {arm for arm in ARMS if ARMS[arm].rule} == {"solver leaves", "halving", "max^n"}
