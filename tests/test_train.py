"""Training: full-deal rows, the learner's arithmetic, and the command with its kills and refusals."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from shmzero import SearchConfig, _core, play_rounds
from shmzero.config import NetConfig, to_toml
from shmzero.errors import ConfigError, ModelFailed
from shmzero.judge import Judge
from shmzero.learn import (
    METRICS,
    MOST_SKIPPED,
    Learner,
    ReplayBuffer,
    Schedule,
    bits,
    load_state,
    save_state,
)
from shmzero.net import BlobNet, load_checkpoint, save_checkpoint
from shmzero.plot import TrainProgress
from shmzero.records import Records
from shmzero.selfplay import Progress
from shmzero.train import UnitLedger, newest_checkpoint, parse, resolved, train
from shmzero.train_config import DEALS, TRAIN_PRESETS, TrainConfig
from tests import oracle
from tests.cases import as_round
from tests.fakes import HashEvaluator
from tests.test_selfplay import alive, children_of

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None
POLICY_ALONE = SearchConfig(simulations=0, noise_fraction=0.1)


def buffer_of(records: list[bytes], capacity: int = 20_000) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity)
    buffer.add(records)
    return buffer


# --- rows ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [POLICY_ALONE, SearchConfig(determinizations=2, simulations=8)])
def test_full_deal_rows_decode_to_the_true_hands(search: SearchConfig) -> None:
    records = play_rounds(HashEvaluator(), 40, search, seed=5, players="3-6", cards="1-6")
    rows = {name: t.numpy() for name, t in buffer_of(records).tensors.items()}
    known = _core.replay(records)
    at = 0
    for data in records:
        record = _core.decode_record(data)
        truth = oracle.Position([list(hand) for hand in record["hands"]], record["trump"], record["dealer"])
        dealt = {card for hand in record["hands"] for card in hand}
        end = truth.copy()
        for action in record["actions"]:
            end.apply(action)
        searched = {one["ply"] for one in record["searched"]}
        for ply, action in enumerate(record["actions"]):
            if ply in searched:
                r = as_round(truth)
                suits = r.suit_order()

                def real(hand: int, row: int = at, suits: list[int] = suits) -> set[int]:
                    cards = np.flatnonzero(rows["hands"][row, 52 * hand : 52 * (hand + 1)])
                    return {suits[card // 13] * 13 + card % 13 for card in cards.tolist()}

                assert real(0) == set(range(52)) - dealt
                for i in range(1, 8):
                    hand = truth.hands[(truth.seat + i) % truth.players] if i < truth.players else []
                    assert real(i) == set(hand)
                assert r.action_from_canonical(int(rows["actions"][at])) == action
                assert np.array_equal(rows["features"][at].astype(np.float32), r.features())
                assert rows["utilities"][at] == pytest.approx(end.utilities()[truth.seat], abs=1e-6)
                assert rows["tricks"][at] == end.tricks_won[truth.seat]
                at += 1
            truth.apply(action)
    for name, other in (("masks", "masks"), ("seat_features", "seat_features"), ("seat_utilities", "seat_values"),
                        ("versions", "versions")):
        assert np.array_equal(rows[name][:at].astype(known[other].dtype), known[other]), name
    assert np.allclose(rows["policies"][:at].astype(np.float32), known["policies"], atol=1e-3)
    assert at == len(known["masks"]) > 300


def test_replay_buffer_wraps_round_and_keeps_the_newest() -> None:
    records = play_rounds(HashEvaluator(), 60, POLICY_ALONE, seed=6)
    whole = buffer_of(records)
    small = ReplayBuffer(300)
    for record in records:
        small.add([record])
    assert small.added == whole.added > 600 and len(small) == 300
    newest = {t.tobytes() for t in whole.tensors["features"][whole.added - 300 : whole.added].numpy()}
    assert {t.tobytes() for t in small.tensors["features"].numpy()} == newest


def test_replay_full_deal_wrong_arrays_are_refused_by_name() -> None:
    records = play_rounds(HashEvaluator(), 2, POLICY_ALONE)
    arrays = dict(ReplayBuffer(100)._arrays)
    for name in arrays:
        with pytest.raises(ValueError, match=f"'{name}'"):
            _core.replay_full_deal(records, {key: a for key, a in arrays.items() if key != name})
    with pytest.raises(ValueError, match="'hands' has another dtype"):
        _core.replay_full_deal(records, arrays | {"hands": np.zeros((100, 416), np.float32)})
    with pytest.raises(ValueError, match="'hands' has another shape"):
        _core.replay_full_deal(records, arrays | {"hands": np.zeros((100, 415), np.uint8)})


def test_serving_network_refuses_full_deal_rows() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 4, POLICY_ALONE))
    rows = torch.cat([buffer.tensors["features"][:8].float(), buffer.tensors["hands"][:8].float()], dim=1)
    assert rows.shape == (8, 256 + 8 * 52)
    with pytest.raises(RuntimeError):
        BlobNet(NetConfig(width=16, hidden=16, blocks=1)).policy_value(rows, torch.ones(8, 52, dtype=torch.bool))


def test_random_moves_without_a_search_are_drawn_uniformly() -> None:
    """A policy that always passes the first legal action: every other action played is a random move."""

    class First:
        def evaluate_many(self, states: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            policies = np.zeros(masks.shape, np.float32)
            policies[np.arange(len(masks)), masks.argmax(axis=1)] = 1.0
            return policies, np.zeros((len(masks), 1), np.float32)

    def share(fraction: float) -> float:
        config = SearchConfig(simulations=0, noise_fraction=fraction)
        others, expected = 0, 0.0
        for data in play_rounds(First(), 200, config, seed=8):
            record = _core.decode_record(data)
            for one in record["searched"]:
                weights = one["weights"]
                others += weights[record["actions"][one["ply"]]] == 0
                expected += 1 - 1 / len(weights)
        return others / expected

    assert share(0.0) == 0.0
    assert share(0.2) == pytest.approx(0.2, abs=0.04)


# --- arithmetic --------------------------------------------------------------------------------------------------------------------

SMALL = TrainConfig(net="quick", critic_net="quick", batch=256, autocast="off")


def learner(config: TrainConfig = SMALL) -> Learner:
    torch.manual_seed(0)
    return Learner(config, "cpu")


def steps(one: Learner, buffer: ReplayBuffer, number: int, done: float = 0.1) -> list[list[float]]:
    if not one.scaled:
        one.measure_scale(buffer)
    schedule = Schedule.at(one.config, done)
    found = [one.step(buffer.sample(one.config.batch, one.generator, "cpu"), schedule) for _ in range(number)]
    return [metrics.tolist() for metrics in found if metrics is not None]


def test_learner_critic_explains_outcomes_and_losses_stay_finite() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 1500, POLICY_ALONE, lanes=512), 30_000)
    one = learner()
    found = np.array(steps(one, buffer, 120))
    assert np.isfinite(found).all() and one.skipped == 0
    at = METRICS.index("critic_loss")
    variance = float(buffer.tensors["utilities"][: len(buffer)].var())
    assert found[-20:, at].mean() < 0.92 * variance, "better than the mean of all outcomes"


def test_broad_deals_have_as_many_decisions_of_every_hand_size() -> None:
    weights = dict(tuple(map(int, part.split(":"))) for part in DEALS["broad"]["cards"].split(","))
    assert set(weights) == set(range(1, 9)) and {cards * weight for cards, weight in weights.items()} == {840}


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
def test_learner_policy_of_a_preset_goes_on_seeing_the_position(preset: str) -> None:
    """At twice the rate what the blocks make of different positions is soon the same."""
    buffer = buffer_of(play_rounds(HashEvaluator(), 1000, POLICY_ALONE, lanes=512))
    one = learner(dataclasses.replace(TRAIN_PRESETS[preset], batch=512))
    steps(one, buffer, 60, done=0.03)
    with torch.no_grad():
        seen = one.net.stream(buffer.tensors["features"][:1000].float())
    assert float(seen.std(dim=0).mean()) > 0.1


def test_learner_policy_moves_towards_the_critics_better_actions() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 400, POLICY_ALONE, lanes=400))
    one = learner(dataclasses.replace(SMALL, entropy_first=0.0, entropy_last=0.0))
    steps(one, buffer, 60)
    rows = {name: t[:2000] for name, t in buffer.tensors.items()}
    masks = bits(rows["masks"])
    with torch.no_grad():
        q = one.critic_values(rows)
        policies, _ = one.net.policy_value(rows["features"].float(), masks)
        uniform = masks / masks.sum(1, keepdim=True)
        assert float((policies * q).sum(1).mean()) > float((uniform * q).sum(1).mean()) + 0.01


def test_learner_tricks_head_learns_how_many_the_mover_will_win() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 600, POLICY_ALONE, lanes=600))
    one = learner(dataclasses.replace(SMALL, tricks_weight=1.0))
    assert one.tricks is not None and "tricks" in one.columns
    rows = {name: t[:2000] for name, t in buffer.tensors.items()}

    def loss() -> float:
        with torch.no_grad():
            said = one.tricks(one.net.stream(rows["features"].float()))
        return float(torch.nn.functional.cross_entropy(said, rows["tricks"].long()))

    before = loss()
    steps(one, buffer, 60)
    shares = torch.bincount(rows["tricks"].long()) / len(rows["tricks"])
    entropy = -float((shares * shares.clamp(min=1e-9).log()).sum())
    assert loss() < min(before, entropy), "better than how often each number comes"
    assert "tricks" not in learner().columns


def test_learner_visits_targets_approach_the_recorded_policy() -> None:
    records = play_rounds(HashEvaluator(), 150, SearchConfig(determinizations=2, simulations=8), lanes=150)
    one = learner(dataclasses.replace(SMALL, targets="visits", search="2x8"))
    assert one.critic is None
    found = np.array(steps(one, buffer_of(records), 150))
    at = METRICS.index("policy_loss")
    assert found[-20:, at].mean() < found[:20, at].mean() - 0.05


def test_learner_gradient_that_is_not_finite_changes_nothing_and_then_stops() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 50, POLICY_ALONE))
    one = learner()
    steps(one, buffer, 2)
    before = {name: t.clone() for name, t in one.net.state_dict().items()}
    for name in ("utilities", "seat_utilities"):
        buffer.tensors[name].fill_(float("nan"))
    assert steps(one, buffer, MOST_SKIPPED - 1) == []
    assert one.skipped == 2 * (MOST_SKIPPED - 1), "steps of policy and critic"
    for name, t in one.net.state_dict().items():
        assert torch.equal(t, before[name]), name
    with pytest.raises(ModelFailed, match="learning_rate"):
        steps(one, buffer, 1)


@pytest.mark.parametrize("targets", ["critic", "visits"])
def test_learner_saved_and_loaded_goes_on_exactly(tmp_path: Path, targets: str) -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 100, POLICY_ALONE))
    config = dataclasses.replace(SMALL, targets=targets, search="2x8" if targets == "visits" else "0")
    one = learner(config)
    steps(one, buffer, 5)
    save_state(one, tmp_path / "state.safetensors", {"rows": 7})
    expected = steps(one, buffer, 5)
    other = learner(config)
    assert load_state(other, tmp_path / "state.safetensors")["rows"] == 7
    assert steps(other, buffer, 5) == expected
    for name, t in other.ema.state_dict().items():
        assert torch.equal(t, one.ema.state_dict()[name]), name


def test_learner_state_of_other_networks_is_refused(tmp_path: Path) -> None:
    save_state(learner(), tmp_path / "state.safetensors", {})
    with pytest.raises(ConfigError, match="other networks"):
        load_state(learner(dataclasses.replace(SMALL, net="small")), tmp_path / "state.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(learner(), tmp_path / "text.safetensors")


def test_schedule_falls_to_a_hundredth_and_the_entropy_weight_linearly() -> None:
    config = TrainConfig()
    rates = [Schedule.at(config, done).learning_rate for done in np.linspace(0.03, 1, 50)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(config.learning_rate / 100)
    assert Schedule.at(config, 0.5).entropy_weight == pytest.approx((config.entropy_first + config.entropy_last) / 2)


def test_unit_ledger_yields_what_is_missing_in_any_order() -> None:
    rng = random.Random(3)
    finished = rng.sample(range(200), 120)
    ledger = UnitLedger(finished)
    units = ledger.missing()
    expected = sorted(set(range(200)) - set(finished))
    assert [next(units) for _ in expected] == expected
    assert next(units) == 200


def test_unit_ledger_yields_nothing_that_was_finished_since_it_was_asked() -> None:
    ledger = UnitLedger([2])
    units = ledger.missing()
    for expected in (0, 1):
        unit = next(units)
        assert unit == expected
        ledger.add(unit)
    assert next(units) == 3  # 2 was there from the start, and the mark has passed it


# --- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAIN_PRESETS)
def test_presets_are_settings_of_real_runs(name: str) -> None:
    config = TRAIN_PRESETS[name]
    last = len(config.stages()) - 1
    assert config.stage(0.0) == 0 and config.stage(1.0) == last
    for stage, (worlds, simulations) in enumerate(config.stages()):
        search = config.self_play(stage, None).search()
        assert (search.determinizations, search.simulations) == (worlds, simulations)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"minutes": None}, "minutes"), ({"search": "x3"}, "search"), ({"targets": "visits"}, "targets"),
        ({"batch": 0}, "batch"), ({"players": "2"}, "players"), ({"net": "huge"}, "net"),
        ({"learning_rate": float("nan")}, "learning_rate"), ({"autocast": "fp8"}, "autocast"),
        ({"search": "2x8:0"}, "search"), ({"search": "2x8:x,3x3"}, "search"), ({"learner": "tpu"}, "learner"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_impossible_settings_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainConfig(**settings)


@pytest.mark.parametrize("name", TRAIN_PRESETS)
def test_resolved_settings_come_back_from_their_file(tmp_path: Path, name: str) -> None:
    config = TRAIN_PRESETS[name]
    (tmp_path / "config.toml").write_text(to_toml(resolved(config)))
    read, _, _ = parse(["run", "--config", str(tmp_path / "config.toml")])
    assert read.identity() == config.identity() and resolved(read) == resolved(config)
    assert (read.minutes, read.rounds) == (config.minutes, config.rounds)


def test_resolved_settings_fill_batches_and_cores_where_there_is_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("config", "train_config"):
        monkeypatch.setattr(f"shmzero.{module}.has_cuda", lambda: False)
    monkeypatch.setattr("shmzero.config.cores", lambda: 3)
    policy = resolved(TrainConfig())
    searched = resolved(TrainConfig(targets="visits", search="3x30"))
    assert (policy["device"], policy["lanes"]) == ("cpu*1", 2048) and policy["max_batch"] and policy["workers"]
    assert searched["device"] == "cpu*3" and searched["lanes"] < policy["lanes"] / 4
    assert searched["lanes"] * searched["workers"] >= searched["max_batch"] / 4
    mixed = resolved(TrainConfig(search="0,3x30"))
    assert (mixed["device"], mixed["lanes"]) == ("auto", None)  # each stage has its own


def test_stages_of_the_plan_change_with_every_hundred_of_its_iterations() -> None:
    config = TRAIN_PRESETS["plan"]
    assert config.rounds is not None
    sizes = [round(2000 + 8000 * min(i / 19, 1)) for i in range(500)]
    assert sum(sizes) == pytest.approx(config.rounds, abs=20)
    for hundred in range(1, 5):
        played = sum(sizes[: 100 * hundred])
        assert config.stage((played - 50) / config.rounds) == hundred - 1
        assert config.stage((played + 50) / config.rounds) == hundred


def test_deals_from_a_named_distribution_yield_to_a_flag() -> None:
    config, _, _ = parse(["run", "--deals-from", "broad", "--players", "3"])
    assert (config.players, config.cards) == ("3", DEALS["broad"]["cards"]) and config.net == TrainConfig().net
    assert parse(["run", "--deals-from=plan"])[0].players == "4:15,5:70,6:15"
    with pytest.raises(ConfigError, match="deals-from"):
        parse(["run", "--deals-from", "mine"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--root", "halving"], "root is 'halving' without a search"), (["--seats", "maximise"], "seats"),
        (["--solved-cards", "8"], "solved_cards"),
        (["--targets", "visits", "--search", "2x8", "--entropy-first", "0.1"], "entropy_first"),
        (["--targets", "visits", "--search", "2x8", "--critic-net", "small"], "critic_net"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(["run", *arguments])
    parse(["run", "--preset", "laptop", "--targets", "visits", "--search", "2x8"])  # whose critic nobody asked for


# --- the command -------------------------------------------------------------------------------------------------------------------

QUICK = ["--opponents", "threshold", "--evaluate-s", "4", "--deals", "50", "--lanes", "256", "--batch", "256", "--checkpoint-s", "1", "--publish-s", "0.2",
         "--buffer", "20000", "--json"]
LENGTH = ["--rounds", "9000", "--minutes", "30"]
KILLS = int(os.environ.get("SHMZERO_TRAIN_KILLS", "1"))
"""Of each kind of process, at random moments; ten for the record."""
KINDS = ("shmzero.worker", "shmzero.inference", "shmzero.learner", "shmzero.judge", "shmzero.train")


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


def test_train_command_leaves_rounds_metrics_and_a_checkpoint(trained: tuple[Path, dict]) -> None:
    folder, summary = trained
    assert summary["complete"] and summary["steps"] > 10
    assert len(Records(folder)) == summary["rounds"] == summary["new_rounds"] > 1000
    assert load_checkpoint(summary["checkpoint"]).config == load_checkpoint(newest_checkpoint(folder)).config
    assert 'net = "quick"' in (folder / "config.toml").read_text()
    learner = last_report(folder)["learner"]
    assert learner["skipped"] == 0 and all(np.isfinite(learner[name]) for name in METRICS)
    assert 0.95 < learner["replay_ratio"] < 1.05  # rounds that came while it ended were learned from as well


def test_train_of_a_few_rounds_learns_from_them_before_it_ends(tmp_path: Path) -> None:
    done = command(tmp_path, "--rounds", 40, "--minutes", 30, *QUICK)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["rounds"] >= 40 and summary["steps"] == pytest.approx(summary["rounds"] * 24 / 256, abs=2)
    assert len(summary["matches"]) == 2


def test_train_plays_its_last_checkpoint_from_one_seat_and_from_all_but_one(trained: tuple[Path, dict]) -> None:
    folder, summary = trained
    last = [line["match"] for line in metrics(folder) if line.get("match", {}).get("deals") == 1000]
    assert last == summary["matches"] and [match["mode"] for match in last] == ["one", "rest"]
    for match in last:
        assert match["steps"] == int(Path(summary["checkpoint"]).stem)
        assert match["low"] < match["mean"] < match["high"] and match["opponent"] == "threshold"


def test_train_decisions_know_the_weights_that_made_them(trained: tuple[Path, dict]) -> None:
    folder, _ = trained
    versions = [one["version"] for data in Records(folder) for one in _core.decode_record(data)["searched"]]
    assert min(versions) == 0 and len(set(versions)) > 3
    assert max(versions) <= last_report(folder)["version"]


def test_train_again_has_nothing_to_do(trained: tuple[Path, dict]) -> None:
    folder, summary = trained
    again = command(folder, *LENGTH, *QUICK)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr and json.loads(again.stdout)["rounds"] == summary["rounds"]
    assert json.loads(again.stdout)["steps"] == summary["steps"]


def test_train_other_settings_are_refused_with_their_names(trained: tuple[Path, dict]) -> None:
    folder, _ = trained
    done = command(folder, *LENGTH, "--learning-rate", 5e-4, "--seed", 3, *QUICK)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "learning_rate: 0.001 there, 0.0005 now" in done.stderr and "seed" in done.stderr


def test_train_stages_change_the_search_and_visits_are_learned_from(tmp_path: Path) -> None:
    config = TrainConfig(minutes=None, rounds=1200, targets="visits", search="2x8:1,2x12:3", opponents="",
                         lanes=64, batch=128, buffer=4000)  # fmt: skip
    shown: list[TrainProgress] = []
    summary = train(config, tmp_path, show=shown.append)
    assert summary["complete"] and summary["steps"] > 0 and summary["rounds"] >= 1200
    found = [sum(one["weights"].values()) for data in Records(tmp_path) for one in _core.decode_record(data)["searched"]]
    assert set(found) == {16, 24} and 0.1 < found.count(16) / len(found) < 0.5
    assert last_report(tmp_path)["learner"]["policy_loss"] > 0
    last = shown[-1]
    assert last.rounds >= 1000 and last.play.rounds < last.rounds - 250  # a rate is of its own stage's rounds
    assert [one.rounds for one in shown] == sorted(one.rounds for one in shown)


def test_train_gate_lets_through_what_beats_the_last_and_ratings_are_kept(tmp_path: Path) -> None:
    done = command(tmp_path, "--gate", "--rate", *LENGTH, *QUICK)
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path)
    passed = [line["gate"]["steps"] for line in lines if "gate" in line]
    better = [line["match"]["steps"] for line in lines if line.get("match", {}).get("mode") == "gate" and line["match"]["low"] > 0]
    assert passed and passed[1:] == better and passed == sorted(passed)
    versions = {one["version"] for data in Records(tmp_path) for one in _core.decode_record(data)["searched"]}
    assert versions <= set(range(len(passed) + 1)) and 0 in versions
    ages = [line["learner"]["replay_age_versions"] for line in lines if line.get("learner", {}).get("policy_loss")]
    assert ages and all(0 <= age <= len(passed) for age in ages)  # in gates passed, not in weights published
    judge = Judge(TrainConfig(gate=True), tmp_path)
    judge.recall(lines)
    assert (judge.best, judge.best_version) == (passed[-1], len(passed))  # what a rerun starts with
    rated = [line["rating"] for line in lines if "rating" in line]
    kept = json.loads((tmp_path / "ratings.json").read_text())["agents"]
    assert rated and set(rated[-1]["agents"]) == set(kept) >= {"threshold", f"step {rated[-1]['steps']}"}
    assert all(one["low"] < one["rating"] < one["high"] for one in rated)


def test_gate_opens_for_a_match_won_beyond_its_interval_and_for_no_other(
    trained: tuple[Path, dict], tmp_path: Path
) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    judge = Judge(TrainConfig(gate=True, evaluate_s=0, deals=300), tmp_path)

    def saved(steps: int, path: Path | None = None) -> None:
        target = checkpoints / f"{steps:08d}.safetensors"
        if path is None:
            save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1), seed=steps), target)
        else:
            target.write_bytes(path.read_bytes())

    def settled() -> dict:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            for line in judge.poll(0.0, print):
                if "match" in line:
                    return line["match"]
            time.sleep(0.02)
        raise AssertionError("no match came")

    try:
        saved(1)
        assert judge.poll(0.0, print) == [] and judge.best == 1  # the first needs no match
        saved(2, judge.checkpoint(1))
        assert abs(settled()["mean"]) < 1e-9 and judge.best == 1  # its equal does not pass
        saved(3, Path(trained[1]["checkpoint"]))
        won = settled()
        assert won["steps"] == 3 and won["low"] > 0 and judge.best == 3
        saved(4)
        assert settled()["low"] < 0 and judge.best == 3  # a fresh one loses, if by little
    finally:
        judge.kill()


def test_judge_matches_a_checkpoint_once(tmp_path: Path) -> None:
    judge = Judge(TrainConfig(evaluate_s=1, deals=2, opponents="random"), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    matched: list[int] = []

    def attend(elapsed_s: float) -> None:
        matched.extend(line["match"]["steps"] for line in judge.poll(elapsed_s, print) if "match" in line)

    try:
        for steps_, elapsed_s in ((5, 10.0), (9, 20.0)):
            attend(elapsed_s)
            assert judge._child is None  # due, but nothing new to match
            save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), judge.checkpoint(steps_))
            attend(elapsed_s)
            until = time.monotonic() + 120
            while judge._child is not None and time.monotonic() < until:
                attend(elapsed_s)
                time.sleep(0.02)
        attend(30.0)
        assert matched == [5, 9] and judge._child is None
        judge = Judge(judge.config, tmp_path)  # of a run that goes on
        judge.recall([{"match": {"mode": "one", "steps": 9, "opponent": "random"}}])
        attend(40.0)
        assert judge._child is None
    finally:
        judge.kill()


def progress(**more: object) -> TrainProgress:
    play = Progress(0, 10**12, 0.0, 41_000, 60.0, 51_945.0, 13_235.0, 917.0, 0.9, 0.8)
    match = {"opponent": "threshold", "mode": "one", "mean": 1.02, "low": 0.8, "high": 1.24, "steps": 900}
    learner = dict.fromkeys(METRICS, 0.1234) | {"steps": 1204, "steps_per_s": 14.3, "learner_waits": 0.07}
    given = {"learner": learner, "matches": [match, match | {"opponent": "uct10x90+solver", "mean": -2.5}],
             "rating": {"rating": 212.0, "low": 180.0, "high": 240.0, "steps": 900}} | more
    return TrainProgress(0.375, 45.0, 3725.0, 82_000, play, 0.03, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_live_table_fits_a_terminal_and_says_everything(width: int) -> None:
    console = Console(width=width, height=24, force_terminal=False, record=True, file=io.StringIO())
    console.print(progress().table())
    lines = console.export_text().splitlines()
    assert len(lines) <= 12 and max(map(len, lines)) <= width
    text = "\n".join(lines)
    for said in ("38%", "0:45, 1:02:05 left", "82,000 rounds", "51,945/min", "13,235 evaluations/s", "step 1,204", "waits 7%",
                 "policy +0.1234", "0.123 nats", "self-play", "strength", "+1.02 (+0.80 to +1.24)", "vs uct10x90", "+212 (+180"):
        assert said in text, said
    console.print(progress(learner={"steps": 7}, matches=[], rating=None).table())
    assert "step 7; waits for its first rounds" in console.export_text()


def test_plain_line_is_one_and_says_when_it_ends() -> None:
    line = progress().line()
    assert "\n" not in line and line.endswith("ETA 1:02:05") and "+1.02±0.22 vs threshold" in line
    assert progress(learner={}).line().count("step 0") == 1


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
        (["--preset", "huge"], "preset"), (["--batch", "0"], "batch"), (["--config", "missing.toml"], "missing.toml"),
        (["--opponents", "nobody"], "nobody"), (["--targets", "visits"], "search"),
        pytest.param(["--tensorboard"], "pip install tensorboard", marks=pytest.mark.skipif(HAS_TENSORBOARD, reason="it is installed")),
    ],
)
def test_train_bad_settings_are_one_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    done = command(tmp_path / "run", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def start(folder: Path, rounds: int = 20_000) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shmzero.train", str(folder), "--rounds", str(rounds), "--minutes", "30", *QUICK],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
    )


def rounds_in(folder: Path) -> int:
    try:
        records = Records(folder)
    except ConfigError:
        return 0
    try:
        return len(records)
    finally:
        records.close()


def wait_until(condition, process: subprocess.Popen[str]) -> None:  # type: ignore[no-untyped-def]
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


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
    return {_core.decode_record(data)["id"]: data for data in Records(folder)} if (folder / "rounds.sqlite").exists() else {}


@pytest.mark.timeout(180 + 120 * KILLS)
def test_train_killed_anywhere_at_any_time_loses_and_doubles_no_record(tmp_path: Path) -> None:
    """Every kind of process, the parent too, is killed at random moments; the same command goes on each time."""
    endless = 10**9
    process = start(tmp_path, endless)
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
        process = start(tmp_path, endless)

    wait_until(lambda: newest_checkpoint(tmp_path) is not None and rounds_in(tmp_path) > len(kept) + 600, process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    before = reports(tmp_path)
    wanted = rounds_in(tmp_path) + 3000
    process = start(tmp_path, wanted)
    out, err = process.communicate()
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert "goes on from step" in err and summary["complete"] and summary["steps"] > steps
    with sqlite3.connect(tmp_path / "rounds.sqlite") as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM rounds ORDER BY id")]
    assert len(ids) == len(set(ids)) == summary["rounds"] >= wanted
    after = records_of(tmp_path)
    assert all(after[unit] == data for unit, data in kept.items())
    assert np.isfinite([one["loss"] for one in reports(tmp_path)]).all()
    assert last_report(tmp_path)["learner"]["skipped"] == 0
    resumed = [one for one in reports(tmp_path) if one["steps"] > before[-1]["steps"]]
    # Not of the schedule, which the shorter run's is far ahead of.
    for name, scale in (("critic_loss", "utility_variance"), ("value_loss", "utility_variance"), ("entropy", None)):
        ended, went_on = (one[name] / (one[scale] if scale else 1) for one in (before[-1], resumed[0]))
        assert went_on == pytest.approx(ended, abs=0.2), name
