"""Training: its settings, and the command with its kills and refusals."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from rich.console import Console

from shmzero import _core
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.fleet import Fleet
from shmzero.engine.plan import resolve
from shmzero.engine.progress import Meter, Progress
from shmzero.errors import ConfigError
from shmzero.game.deals import DEALS
from shmzero.learner.algorithm import METRICS
from shmzero.learner.state import read_facts
from shmzero.machine import Machine
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import load_checkpoint, save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.runs.checkpoints import checkpoint_path, newest_checkpoint
from shmzero.runs.folder import STATE_NAME
from shmzero.runs.records import Records
from shmzero.settings import to_toml
from shmzero.train import describe, parse
from shmzero.training.config import TrainConfig
from shmzero.training.match_runner import MatchRunner
from shmzero.training.plan import resolve_training
from shmzero.training.presets import TRAIN_PRESETS
from shmzero.training.progress import TrainProgress
from shmzero.training.run import balanced_replay_ratio, train
from tests.support.processes import alive, children_of, committed, start, wait_for

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


# --- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAIN_PRESETS)
def test_presets_are_settings_of_real_runs(name: str) -> None:
    config = TRAIN_PRESETS[name]
    last = len(config.search.stages()) - 1
    assert config.search.stage(0.0) == 0 and config.search.stage(1.0) == last
    for stage, (worlds, simulations) in enumerate(config.search.stages()):
        search = config.self_play(stage).search_config()
        assert (search.determinizations, search.simulations) == (worlds, simulations)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"minutes": None}, "minutes"),
        ({"search": "x3"}, "search"),
        ({"targets": "visits"}, "targets"),
        ({"batch": 0}, "batch"),
        ({"players": "2"}, "players"),
        ({"net": "huge"}, "net"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"autocast": "fp8"}, "autocast"),
        ({"search": "2x8:0"}, "search"),
        ({"search": "2x8:x,3x3"}, "search"),
        ({"learner": "tpu"}, "learner"),
        ({"rounds": 0}, "rounds"),
        ({"minutes": 0.5, "closing_s": 30}, "closing_s is 30 of 30 s"),
        ({"whole_games": True, "utility": "win", "gate": True}, "gate"),
    ],
)
def test_impossible_settings_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainConfig.of(**settings)


def test_summary_of_a_run_too_short_to_learn_says_so(tmp_path: Path) -> None:
    summary = train(TrainConfig.of(rounds=1, minutes=30, match_opponents=""), tmp_path, started=time.monotonic() - 3600)
    assert summary["complete"] and "no checkpoint: it was over before" in describe(summary)


@pytest.mark.parametrize("name", TRAIN_PRESETS)
def test_resolved_settings_come_back_from_their_file(tmp_path: Path, name: str) -> None:
    config = TRAIN_PRESETS[name]
    (tmp_path / "config.toml").write_text(to_toml(resolve_training(config).dump()))
    read, _, _ = parse(["run", "--config", str(tmp_path / "config.toml")])
    assert read.identity() == config.identity() and resolve_training(read).dump() == resolve_training(config).dump()
    assert read.length == config.length


def test_resolved_settings_fill_batches_and_cores_where_there_is_a_search() -> None:
    machine = Machine(cores=3, has_cuda=False)
    policy = resolve_training(TrainConfig(), machine).dump()
    searched = resolve_training(TrainConfig.of(targets="visits", search="3x30"), machine).dump()
    assert (policy["device"], policy["lanes"]) == ("cpu*1", 512) and policy["max_batch"] and policy["workers"]
    assert searched["device"] == "cpu*3" and searched["lanes"] < policy["lanes"]
    assert searched["lanes"] * searched["workers"] >= searched["max_batch"] / 4
    mixed = resolve_training(TrainConfig.of(search="0,3x30"), machine).dump()
    assert (mixed["device"], mixed["lanes"]) == ("auto", None)  # each stage has its own


def test_stages_of_the_plan_change_with_every_hundred_of_its_iterations() -> None:
    config = TRAIN_PRESETS["plan"]
    rounds = config.length.rounds
    assert rounds is not None
    sizes = [round(2000 + 8000 * min(i / 19, 1)) for i in range(500)]
    assert sum(sizes) == pytest.approx(rounds, abs=20)
    for hundred in range(1, 5):
        played = sum(sizes[: 100 * hundred])
        assert config.search.stage((played - 50) / rounds) == hundred - 1
        assert config.search.stage((played + 50) / rounds) == hundred


def test_deals_from_a_named_distribution_yield_to_a_flag() -> None:
    config, _, _ = parse(["run", "--deals-from", "broad", "--players", "3"])
    assert (config.deals.players, config.deals.cards) == ("3", DEALS["broad"]["cards"])
    assert config.learning == TrainConfig().learning
    assert parse(["run", "--deals-from=plan"])[0].deals.players == "4:15,5:70,6:15"
    with pytest.raises(ConfigError, match="deals-from"):
        parse(["run", "--deals-from", "mine"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--root", "halving"], "root is 'halving' without a search"),
        (["--opponent-model", "maximise"], "opponent_model"),
        (["--solved-cards", "8"], "solved_cards"),
        (["--targets", "visits", "--search", "2x8", "--entropy-first", "0.1"], "entropy_first"),
        (["--targets", "visits", "--search", "2x8", "--critic-net", "small"], "critic_net"),
        (["--targets", "visits", "--search", "2x8", "--redeals", "7"], "redeals"),
        (["--search", "2x8", "--importance-cap", "5"], "importance_cap is 5 with a search"),
        (["--targets", "improved", "--search", "2x8", "--neurd-share", "0.2"], "neurd_share"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(["run", *arguments])
    parse(["run", "--preset", "laptop", "--targets", "visits", "--search", "2x8"])  # whose critic nobody asked for


# --- the command -------------------------------------------------------------------------------------------------------------------

QUICK = [
    "--match-opponents",
    "threshold",
    "--evaluate-s",
    "4",
    "--deals",
    "50",
    "--lanes",
    "256",
    "--batch",
    "256",
    "--checkpoint-s",
    "1",
    "--publish-s",
    "0.2",
    "--buffer",
    "20000",
    "--replay-ratio",
    "1",
    "--json",
]
LENGTH = ["--rounds", "9000", "--minutes", "30"]
ENDLESS = 10**9
KILLS = int(os.environ.get("SHMZERO_TRAIN_KILLS", "1"))
"""Of each kind of process, at random moments; ten for the record."""
KINDS = (
    "shmzero.engine.worker",
    "shmzero.inference.process",
    "shmzero.learner.process",
    "shmzero.matches.process",
    "shmzero.train",
)


def command(*arguments: object, module: str = "shmzero.train") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def reports(folder: Path) -> list[dict]:
    """What the learner said of its batches, each report once."""
    found = [line["learner"] for line in metrics(folder) if "loss" in line.get("learner", {})]
    return [one for i, one in enumerate(found) if i == 0 or one != found[i - 1]]


def last_report(folder: Path) -> dict:
    return [line for line in metrics(folder) if "learner" in line][-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A real run of some seconds, shared by those who only look at it."""
    folder = tmp_path_factory.mktemp("run")
    done = command(folder, *LENGTH, *QUICK)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.slow
def test_train_command_leaves_rounds_metrics_and_a_checkpoint(trained: tuple[Path, dict]) -> None:
    folder, summary = trained
    assert summary["complete"] and summary["steps"] > 10
    assert len(Records(folder)) == summary["rounds"] == summary["new_rounds"] == int(LENGTH[1])
    assert load_checkpoint(summary["checkpoint"]).config == load_checkpoint(newest_checkpoint(folder)).config
    assert 'net = "quick"' in (folder / "config.toml").read_text()
    learner = last_report(folder)["learner"]
    assert learner["skipped"] == 0 and all(np.isfinite(learner[name]) for name in METRICS)
    assert 0.95 < learner["replay_ratio"] < 1.05  # rounds that came while it ended were learned from as well


@pytest.mark.slow
def test_train_of_a_few_rounds_learns_from_them_before_it_ends(tmp_path: Path) -> None:
    done = command(tmp_path, "--rounds", 40, "--minutes", 30, *QUICK)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["rounds"] == 40 and summary["steps"] == pytest.approx(summary["rounds"] * 24 / 256, abs=2)
    assert len(summary["matches"]) == 2


@pytest.mark.slow
def test_train_plays_its_last_checkpoint_from_one_seat_and_from_all_but_one(trained: tuple[Path, dict]) -> None:
    folder, summary = trained
    last = [line["match"] for line in metrics(folder) if line.get("match", {}).get("deals") == 1000]
    assert last == summary["matches"] and [match["mode"] for match in last] == ["one", "rest"]
    for match in last:
        assert match["steps"] == int(Path(summary["checkpoint"]).stem)
        assert match["low"] < match["mean"] < match["high"] and match["opponent"] == "threshold"


def versions_of(records: Iterable[bytes]) -> set[int]:
    """Of the weights that made these rounds' decisions."""
    return {one["version"] for data in records for one in _core.decode_record(data)["searched"]}


@pytest.mark.slow
def test_train_decisions_know_the_weights_that_made_them(tmp_path: Path) -> None:
    process = begin(tmp_path, ENDLESS)
    seen: set[int] = set()

    def several() -> bool:
        if committed(tmp_path):
            seen.update(versions_of(Records(tmp_path).newest(500)))
        return len(seen) > 2

    wait_for(several, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    versions = versions_of(Records(tmp_path))
    assert min(versions) == 0 and max(versions) <= last_report(tmp_path)["version"]


@pytest.mark.slow
def test_train_again_has_nothing_to_do(trained: tuple[Path, dict]) -> None:
    folder, summary = trained
    again = command(folder, *LENGTH, *QUICK)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr and json.loads(again.stdout)["rounds"] == summary["rounds"]
    assert json.loads(again.stdout)["steps"] == summary["steps"]


@pytest.mark.slow
def test_train_other_settings_are_refused_with_their_names(trained: tuple[Path, dict]) -> None:
    folder, _ = trained
    done = command(folder, *LENGTH, "--learning-rate", 5e-4, "--seed", 3, *QUICK)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "learning_rate: 0.001 there, 0.0005 now" in done.stderr and "seed" in done.stderr


@pytest.mark.slow
def test_train_stages_change_the_search_and_visits_are_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shmzero.training.run.COMMIT_S", 0.0)  # a stage ends by what is committed
    config = TrainConfig.of(minutes=None, rounds=1200, targets="visits", search="2x8:1,2x12:3", match_opponents="",
                         lanes=64, batch=128, buffer=4000, device="cpu", workers=2)  # fmt: skip
    shown: list[TrainProgress] = []
    summary = train(config, tmp_path, show=shown.append)
    assert summary["complete"] and summary["steps"] > 0 and summary["rounds"] == 1200
    found = [sum(one["counts"].values()) for data in Records(tmp_path) for one in _core.decode_record(data)["searched"]]
    assert set(found) == {16, 24} and 0.1 < found.count(16) / len(found) < 0.5
    assert last_report(tmp_path)["learner"]["policy_loss"] > 0
    last = shown[-1]
    assert last.rounds >= 1000 and last.play.rounds < last.rounds - 250  # a rate is of its own stage's rounds
    assert [one.rounds for one in shown] == sorted(one.rounds for one in shown)


@pytest.mark.slow
def test_train_gate_lets_through_what_beats_the_last_and_ratings_are_kept(tmp_path: Path) -> None:
    process = begin(tmp_path, ENDLESS, "--gate", "--rating")
    wait_for(lambda: committed(tmp_path) and any("gate" in line for line in metrics(tmp_path)), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    done = command(tmp_path, "--gate", "--rating", "--rounds", committed(tmp_path), "--minutes", 30, *QUICK)
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path)
    passed = [line["gate"]["steps"] for line in lines if "gate" in line]
    better = [
        line["match"]["steps"]
        for line in lines
        if line.get("match", {}).get("mode") == "gate" and line["match"]["low"] > 0
    ]
    assert passed and passed[1:] == better and passed == sorted(passed)
    versions = {one["version"] for data in Records(tmp_path) for one in _core.decode_record(data)["searched"]}
    assert versions <= set(range(len(passed) + 1)) and 0 in versions
    ages = [line["learner"]["replay_age_versions"] for line in lines if line.get("learner", {}).get("policy_loss")]
    # In gates passed, not in weights published; rounds may be there before the word of the weights that made them.
    assert ages and all(-1 <= age <= len(passed) for age in ages)
    matches = MatchRunner(TrainConfig.of(gate=True), tmp_path)
    matches.recall(lines)
    assert (matches.gate.best, matches.gate.best_version) == (passed[-1], len(passed))  # what a rerun starts with
    rated = [line["rating"] for line in lines if "rating" in line]
    kept = json.loads((tmp_path / "ratings.json").read_text())["agents"]
    assert rated and set(rated[-1]["agents"]) == set(kept) >= {"threshold", f"step {rated[-1]['steps']}"}
    assert all(one["low"] < one["rating"] < one["high"] for one in rated)


def test_gate_opens_for_a_match_won_beyond_its_interval_and_for_no_other(
    trained: tuple[Path, dict], tmp_path: Path
) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    matches = MatchRunner(TrainConfig.of(gate=True, evaluate_s=0, deals=300), tmp_path)

    def saved(steps: int, path: Path | None = None) -> None:
        target = checkpoints / f"{steps:08d}.safetensors"
        if path is None:
            save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1), seed=steps), target)
        else:
            target.write_bytes(path.read_bytes())

    def settled() -> dict:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            for line in matches.poll(0.0, print):
                if "match" in line:
                    return line["match"]
            time.sleep(0.02)
        raise AssertionError("no match came")

    try:
        saved(1)
        assert matches.poll(0.0, print) == [] and matches.gate.best == 1  # the first needs no match
        saved(2, checkpoint_path(tmp_path, 1))
        assert abs(settled()["mean"]) < 1e-9 and matches.gate.best == 1  # its equal does not pass
        saved(3, Path(trained[1]["checkpoint"]))
        won = settled()
        assert won["steps"] == 3 and won["low"] > 0 and matches.gate.best == 3
        saved(4)
        assert settled()["low"] < 0 and matches.gate.best == 3  # a fresh one loses, if by little
    finally:
        matches.kill()


@pytest.mark.slow
def test_checkpoint_plays_its_matches_once(tmp_path: Path) -> None:
    matches = MatchRunner(TrainConfig.of(evaluate_s=1, deals=2, match_opponents="random"), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    matched: list[int] = []

    def attend(elapsed_s: float) -> None:
        matched.extend(line["match"]["steps"] for line in matches.poll(elapsed_s, print) if "match" in line)

    try:
        for steps_, elapsed_s in ((5, 10.0), (9, 20.0)):
            attend(elapsed_s)
            assert matches._child is None  # due, but nothing new to match
            save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), checkpoint_path(tmp_path, steps_))
            attend(elapsed_s)
            until = time.monotonic() + 120
            while matches._child is not None and time.monotonic() < until:
                attend(elapsed_s)
                time.sleep(0.02)
        attend(30.0)
        assert matched == [5, 9] and matches._child is None
        matches = MatchRunner(matches.config, tmp_path)  # of a run that goes on
        matches.recall([{"match": {"mode": "one", "steps": 9, "opponent": "random"}}])
        attend(40.0)
        assert matches._child is None
    finally:
        matches.kill()


def progress(**more: object) -> TrainProgress:
    play = Progress(0, 10**12, 0.0, 41_000, 60.0, 51_945.0, 13_235.0, 917.0, 0.9, 0.8)
    match = {"opponent": "threshold", "mode": "one", "mean": 1.02, "low": 0.8, "high": 1.24, "steps": 900}
    learner = dict.fromkeys(METRICS, 0.1234) | {"steps": 1204, "steps_per_s": 14.3, "learner_waits": 0.07}
    given = {
        "learner": learner,
        "matches": [match, match | {"opponent": "uct10x90+solver", "mean": -2.5}],
        "rating": {"rating": 212.0, "low": 180.0, "high": 240.0, "steps": 900},
    } | more
    given = {"play": play, "play_waits": 0.03, "waits_for": None, "waits_s": 0.0} | given
    return TrainProgress(0.375, 45.0, 3725.0, 82_000, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_live_table_fits_a_terminal_and_says_everything(width: int) -> None:
    console = Console(width=width, height=24, force_terminal=False, record=True, file=io.StringIO())
    console.print(progress().table())
    lines = console.export_text().splitlines()
    assert len(lines) <= 12 and max(map(len, lines)) <= width
    text = "\n".join(lines)
    for said in (
        "38%",
        "0:45, 1:02:05 left",
        "82,000 rounds",
        "51,945/min",
        "13,235 evaluations/s",
        "step 1,204",
        "waits 7%",
        "policy +0.1234",
        "0.123 nats",
        "self-play",
        "strength",
        "+1.02 (+0.80 to +1.24)",
        "vs uct10x90",
        "+212 (+180",
    ):
        assert said in text, said
    console.print(progress(learner={"steps": 7}, matches=[], rating=None).table())
    assert "step 7; waits for its first rounds" in console.export_text()


@pytest.mark.parametrize("width", [60, 200])
def test_live_table_of_self_play_that_waits_says_for_what_and_how_it_plays_when_it_does(width: int) -> None:
    console = Console(width=width, height=24, force_terminal=False, record=True, file=io.StringIO())
    console.print(progress(waits_for="the learner", waits_s=75.0, play_waits=0.7).table())
    text = console.export_text()
    for said in ("82,000 rounds, 51,945/min when it plays", "has waited 1:15 for the learner", "13,235 evaluations/s in batches of 917",
                 "waits 70%"):  # fmt: skip
        assert said in text, said
    line = progress(waits_for="the learner", waits_s=75.0).line()
    assert "82,000 rounds, has waited 1:15 for the learner, 51,945/min when it plays |" in line


def test_live_view_of_self_play_that_has_not_played_yet_has_no_rates() -> None:
    still = Progress(0, 10**12, 0.0, 0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    console = Console(width=80, force_terminal=False, record=True, file=io.StringIO())
    for more in ({}, {"waits_for": "the inference processes to start", "waits_s": 3.0}):
        console.print(progress(play=still, **more).table())
        text = console.export_text() + progress(play=still, **more).line()
        assert "82,000 rounds" in text and "/min" not in text and "evaluations" not in text
        assert text.count("has waited 0:03 for the inference processes to start") == 2 * bool(more)


def test_meter_counts_no_time_in_which_the_fleet_waits() -> None:
    config = SelfPlayConfig.of(evaluator="hash", preset="light", workers=1, lanes=20)
    with Fleet(resolve(config), range(10**6), 10**6) as fleet:
        meter = Meter(fleet, 10**6)
        rounds = 0

        def attend() -> Progress:
            nonlocal rounds
            rounds += len(fleet.poll(0.02))
            return meter.progress(0, rounds)

        wait_for(lambda: attend().rounds_per_min > 0)
        assert meter.waits_since is None and meter.waits == 0
        fleet.paused = True
        wait_for(lambda: attend() and meter.waits_since is not None)
        attend()
        played_s, then = meter.played_s, attend()
        wait_for(lambda: attend() and meter.waits > 0.5)
        now = attend()
        assert meter.played_s == played_s
        assert now.rounds_per_min == then.rounds_per_min > 0 and now.evaluations_per_s == then.evaluations_per_s > 0
        assert now.mean_batch_rows == then.mean_batch_rows > 0
        fleet.paused = False
        wait_for(lambda: attend() and meter.waits_since is None and meter.played_s > played_s)


@pytest.mark.parametrize(
    ("waits", "wanted"),
    [
        ((0.7, 0.0), 0.6),
        ((0.0, 0.75), 8.0),
        ((0.2, 0.0), None),
        ((0.4, 0.3), None),
        ((0.0, 1.0), 100.0),
        ((0.5, 0.2), 1.2),
    ],
)
def test_balanced_replay_ratio_gives_each_half_what_the_other_can_do(
    waits: tuple[float, float], wanted: float | None
) -> None:
    assert balanced_replay_ratio(2.0, *waits) == wanted


@pytest.mark.parametrize(
    ("play", "learner", "said"),
    [
        (
            0.7,
            0.02,
            "self-play waited 70% of the time for the learner, which waited 2%: .* --replay-ratio 0.61 instead of 2 ",
        ),
        (
            0.01,
            0.8,
            "the learner waited 80% of the time for rounds, self-play 1%: .* --replay-ratio 9.9 instead of 2 .*--workers",
        ),
        (0.1, 0.1, ""),
    ],
)
def test_summary_says_what_would_balance_the_halves(play: float, learner: float, said: str) -> None:
    summary = {
        "rounds": 10, "steps": 7, "elapsed_s": 120.0, "matches": [], "judge_failures": 0, "checkpoint": "x", "complete": True,
        "self_play_waits": play, "learner_waits": learner, "replay_ratio": 2.0,
        "balanced_replay_ratio": balanced_replay_ratio(2.0, play, learner),
    }  # fmt: skip
    text = describe(summary)
    assert re.search(said, text) if said else "waited" not in text


def test_plain_line_is_one_and_says_when_it_ends() -> None:
    line = progress().line()
    assert "\n" not in line and line.endswith("ETA 1:02:05") and "+1.02±0.22 vs threshold" in line
    assert progress(learner={}).line().count("step 0") == 1


@pytest.mark.slow
def test_train_for_tensorboard_writes_what_the_metrics_hold(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an optional extra: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = command(tmp_path, "--tensorboard", *LENGTH, *QUICK)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [line["learner"]["loss"] for line in metrics(tmp_path) if "loss" in line.get("learner", {})]
    assert losses
    np.testing.assert_allclose([event.value for event in events.Scalars("learner/loss")], losses, rtol=1e-6)
    assert "match/threshold/one/mean" in events.Tags()["scalars"]


@pytest.mark.slow
def test_plot_writes_a_picture(trained: tuple[Path, dict], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an optional extra: pip install matplotlib")
    done = command(trained[0], "--out", tmp_path / "curves.png", module="shmzero.plot")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_plot_without_a_run_is_one_line(tmp_path: Path) -> None:
    done = command(tmp_path, module="shmzero.plot")
    assert done.returncode == 2 and done.stderr.startswith("error: there is no")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "huge"], "preset"),
        (["--batch", "0"], "batch"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--match-opponents", "nobody"], "nobody"),
        (["--targets", "visits"], "search"),
        pytest.param(
            ["--tensorboard"],
            "pip install tensorboard",
            marks=pytest.mark.skipif(HAS_TENSORBOARD, reason="it is installed"),
        ),
    ],
)
def test_train_bad_settings_are_one_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    done = command(tmp_path / "run", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def begin(folder: Path, rounds: int, *arguments: str) -> subprocess.Popen[str]:
    return start("shmzero.train", folder, "--rounds", rounds, "--minutes", 30, *QUICK, *arguments)


def module_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return ""
    return words[words.index(b"-m") + 1].decode() if b"-m" in words else ""


def kill_one(kind: str, process: subprocess.Popen[str]) -> bool:
    """Kill a process of the run; False where there is none, or the run has ended."""
    found = [process.pid] if kind == KINDS[-1] else [p for p in children_of(process.pid) if module_of(p) == kind]
    if process.poll() is not None or not found:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(random.choice(found), signal.SIGKILL)
    return True


def records_of(folder: Path) -> dict[int, bytes]:
    try:
        return {_core.decode_record(data)["id"]: data for data in Records(folder)}
    except ConfigError:  # not there yet
        return {}


@pytest.mark.slow
@pytest.mark.timeout(180 + 120 * KILLS)
def test_train_killed_anywhere_at_any_time_loses_and_doubles_no_record(tmp_path: Path) -> None:
    """Every kind of process, the parent too, is killed at random moments; the same command goes on each time."""
    process = begin(tmp_path, ENDLESS)
    left = list(KINDS) * KILLS
    kept: dict[int, bytes] = {}
    steps = 0
    while left:
        time.sleep(random.uniform(0, 1.5))
        children = children_of(process.pid)
        random.shuffle(left)
        killed = [kind for kind in left[: random.choice((1, 1, 2))] if kill_one(kind, process)]
        for kind in killed:
            left.remove(kind)
        if process.poll() is None and KINDS[-1] not in killed:
            continue
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL or "within 60 s" in err, err  # five deaths in a minute end a run
        while any(alive(child) for child in children):
            time.sleep(0.02)
        now = records_of(tmp_path)
        assert all(now.get(unit) == data for unit, data in kept.items())
        kept = now
        if (newest := newest_checkpoint(tmp_path)) is not None:
            load_checkpoint(newest)  # the last good one is whole
            assert int(newest.stem) >= steps
            steps = int(newest.stem)
        process = begin(tmp_path, ENDLESS)

    wait_for(lambda: newest_checkpoint(tmp_path) is not None and committed(tmp_path) > len(kept) + 3000, process)
    wait_for(lambda: reports(tmp_path), process)  # every session so far may have been too short for one
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    before = reports(tmp_path)
    wanted = committed(tmp_path) + 3000
    process = begin(tmp_path, wanted)
    out, err = process.communicate()
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert "goes on from step" in err and summary["complete"] and summary["steps"] > steps
    with sqlite3.connect(tmp_path / "rounds.sqlite") as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM rounds ORDER BY id")]
    assert len(ids) == len(set(ids)) == summary["rounds"] == wanted
    after = records_of(tmp_path)
    assert all(after[unit] == data for unit, data in kept.items())
    assert np.isfinite([one["loss"] for one in reports(tmp_path)]).all()
    assert last_report(tmp_path)["learner"]["skipped"] == 0
    assert before[-1]["steps"] <= reports(tmp_path)[-1]["steps"]
    # What it learned from changes with every kill, and so the losses do; the optimisers have made every step of all sessions.
    state, facts = safetensors.torch.load_file(tmp_path / STATE_NAME), read_facts(tmp_path / STATE_NAME)
    assert facts["steps"] == summary["steps"] == int(state["optimiser.0.step"])
    ahead = int(state["critic_optimiser.0.step"]) - summary["steps"]
    assert 0 <= ahead <= len(KINDS) * KILLS + 2  # it is half a step ahead, once more with each session
    for name in ("critic_loss", "value_loss"):
        assert reports(tmp_path)[-1][name] < 2 * reports(tmp_path)[-1]["utility_variance"], name
