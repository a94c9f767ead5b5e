"""Run folders that an earlier version left (tests/golden/runs): they are read, and the commands that made them go on with them."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import shmzero
from shmzero import _core, records, selfplay, train
from shmzero.learner.state import read_facts
from shmzero.matches.agents import make_agent
from shmzero.mcts.config import SearchConfig
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.config import NETS
from shmzero.runs.checkpoints import checkpoints, newest_checkpoint, newest_version
from shmzero.runs.folder import STATE_NAME
from shmzero.runs.records import Records
from tests.golden.old_runs import FINISHED, FOLDER, INTERRUPTED, ROOT, RUNS, WEIGHTS_NAME, lay_out, words
from tests.support.processes import start

HASHED = ["rounds", "policy", "games"]
"""Runs with the hash evaluator: their records are the same on every machine."""
TRAINED = [name for name in RUNS if words(name)[0] == "shmzero.train"]
KEPT = [("interrupted", name) for name in INTERRUPTED] + [("finished", name) for name in FINISHED]


def go_on(name: str, place: Path) -> str:
    """Give a run's command once more; what it says on standard error."""
    process = start(*words(name), path=ROOT, cwd=place)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return said


def give(name: str, *more: str) -> int:
    """A run's command in this process and the current folder, for where it plays nothing; its exit code."""
    module, *flags = words(name)
    return {"shmzero.selfplay": selfplay.main, "shmzero.train": train.main}[module]([*flags, *more])


def records_of(run: Path) -> list[bytes]:
    found = Records(run)
    try:
        return list(found)
    finally:
        found.close()


def decoded(records: list[bytes]) -> list[dict[str, Any]]:
    return [_core.decode_record(record) for record in records]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def meta(run: Path) -> dict[str, str]:
    """What the record file says of its run."""
    connection = sqlite3.connect(run / "rounds.sqlite")
    try:
        return dict(connection.execute("SELECT key, value FROM meta"))
    finally:
        connection.close()


# --- the folders ----------------------------------------------------------------------------------------------------------


def test_old_runs_are_those_that_are_listed_and_small() -> None:
    lying = {(path.parent.name, path.name) for path in FOLDER.glob("*/*") if path.is_dir()}
    assert lying == set(KEPT)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 300_000


@pytest.mark.parametrize(("state", "name"), KEPT)
def test_old_run_lies_there_as_a_command_that_has_ended_leaves_it(state: str, name: str) -> None:
    run = FOLDER / state / name
    known = {"rounds.sqlite", "config.toml", "metrics.jsonl", "ratings.json", WEIGHTS_NAME}
    assert {path.name for path in run.iterdir()} <= known  # no log of SQLite's, nothing half written
    head = (run / "rounds.sqlite").read_bytes()[:20]
    assert (
        head.startswith(b"SQLite format 3") and head[18:20] == b"\x01\x01"
    )  # a journal, and no log that is written ahead


def test_old_runs_were_interrupted_in_the_middle(tmp_path: Path) -> None:
    """Some rounds are missing between others, some games have begun, training has a state and a match."""
    gaps = 0
    for name in ("rounds", "policy"):
        ids = [one["id"] for one in decoded(records_of(lay_out(name, tmp_path)))]
        gaps += ids != list(range(ids[0], ids[0] + len(ids)))
    assert gaps
    begun = ended = 0
    last: dict[int, dict[str, Any]] = {}
    for one in decoded(records_of(lay_out("games", tmp_path))):
        last[one["id"] // _core.MAX_ROUNDS_PER_GAME] = one
    for one in last.values():
        whole = one["round_of_game"] + 1 == one["rounds_of_game"]
        ended, begun = ended + whole, begun + (not whole)
    assert begun and ended
    for name in ("critic", "visits"):
        run = lay_out(name, tmp_path)
        newest = newest_checkpoint(run)
        assert newest is not None and read_facts(run / STATE_NAME)["steps"] == int(newest.stem) > 0
        assert any("match" in line for line in metrics(run))


# --- they are read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "name"), KEPT)
def test_old_run_is_shown_by_the_records_command(
    state: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lay_out(name, tmp_path, state)
    assert records.main([str(run), "--show", "3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    kept = records_of(run)
    assert shown["rounds"] == len(kept) and shown["shown"] == json.loads(json.dumps(decoded(kept[:3])))
    assert shown["settings"]["seed"] == int(words(name)[words(name).index("--seed") + 1])
    assert records.main([str(run)]) == 0
    assert f"{len(kept)} rounds" in capsys.readouterr().out
    assert len(_core.replay(kept)["values"]) > 0


@pytest.mark.parametrize(("state", "name"), KEPT)
def test_old_config_file_gives_the_settings_of_its_command(
    state: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lay_out(name, tmp_path, state)
    monkeypatch.chdir(tmp_path)
    flags, file = words(name)[1:], str(run / "config.toml")
    config: Any
    again: Any
    lengths: tuple[str, ...]
    if name in TRAINED:
        (config, *_), (again, *_) = train.parse(flags), train.parse(["run", "--config", file])
        lengths = ("minutes", "rounds")
    else:
        config, again = selfplay.parse(flags), selfplay.parse(["--config", file])
        lengths = ("rounds", "games", "first", "out", "checkpoint")
    assert again.identity() == config.identity()
    assert [again.flat()[length] for length in lengths] == [config.flat()[length] for length in lengths]


@pytest.mark.parametrize("name", FINISHED)
def test_old_run_that_is_finished_has_nothing_left_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lay_out(name, tmp_path, "finished")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert give(name) == 0
    assert "nothing to do" in capsys.readouterr().err
    if name not in TRAINED:
        assert selfplay.main(["--config", f"{name}/config.toml"]) == 0  # it names the folder as well
        assert "nothing to do" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_old_training_runs_are_networks_that_play(tmp_path: Path) -> None:
    for name, state in (("critic", "interrupted"), ("visits", "interrupted"), ("wins", "finished")):
        run = lay_out(name, tmp_path, state)
        network = shmzero.load_network(run, policy_only=name == "wins")
        assert len(shmzero.play_rounds(network, 2, SearchConfig(simulations=0), cards="2")) == 2
        assert make_agent(f"{run}:policy").name.endswith(":policy")


# --- they go on ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HASHED)
def test_old_self_play_that_goes_on_ends_as_if_it_had_never_been_interrupted(name: str, tmp_path: Path) -> None:
    """The rounds of before and those that are added are, byte by byte, what the earlier version recorded in one go."""
    run = lay_out(name, tmp_path)
    whole = records_of(lay_out(name, tmp_path / "whole", "finished"))
    before = records_of(run)
    told = (run / "metrics.jsonl").read_bytes() if (run / "metrics.jsonl").exists() else b""
    assert 0 < len(before) < len(whole) and set(before) < set(whole)
    go_on(name, tmp_path)
    assert records_of(run) == whole
    assert not told or (run / "metrics.jsonl").read_bytes().startswith(told)
    assert meta(run) == meta(tmp_path / "whole" / name)


def test_old_self_play_with_checkpoints_goes_on_with_the_same_weights(tmp_path: Path) -> None:
    run = lay_out("networks", tmp_path)
    before, told, about = records_of(run), (run / "metrics.jsonl").read_bytes(), meta(run)
    said = go_on("networks", tmp_path)
    after = records_of(run)
    assert "serves" in said and set(before) < set(after)
    assert [one["id"] for one in decoded(after)] == list(range(24))
    assert {found["version"] for one in decoded(after) for found in one["searched"]} == {
        0
    }  # these are not other weights
    assert (run / "metrics.jsonl").read_bytes().startswith(told)
    assert meta(run) == about


@pytest.mark.slow
@pytest.mark.parametrize("name", ["critic", "visits"])
def test_old_training_goes_on_from_its_step_to_its_end(name: str, tmp_path: Path) -> None:
    run = lay_out(name, tmp_path)
    before, told = records_of(run), (run / "metrics.jsonl").read_bytes()
    steps, version, saved = read_facts(run / STATE_NAME)["steps"], newest_version(run), checkpoints(run)
    first = load_file(run / STATE_NAME)
    said = go_on(name, tmp_path)
    assert f"the learner goes on from step {steps} with" in said

    after, wanted = records_of(run), int(words(name)[words(name).index("--rounds") + 1])
    assert set(before) < set(after) and len(after) >= wanted
    if name == "critic":
        assert [one["id"] for one in decoded(after)] == list(range(wanted))
    units: dict[int, list[dict[str, Any]]] = {}
    for one in decoded(after):
        units.setdefault(one["id"] // _core.MAX_ROUNDS_PER_GAME, []).append(one)
    if name == "visits":  # whole games alone
        assert all(
            [one["round_of_game"] for one in game] == list(range(game[0]["rounds_of_game"])) for game in units.values()
        )
    new = decoded([record for record in after if record not in set(before)])
    assert {found["version"] for one in new for found in one["searched"]} <= set(
        range(version, newest_version(run) + 1)
    )
    assert newest_version(run) > version and set(saved) < set(checkpoints(run))

    assert (run / "metrics.jsonl").read_bytes().startswith(told)
    old, lines = metrics(lay_out(name, tmp_path / "old")), metrics(run)
    elapsed = [line["elapsed_s"] for line in lines[len(old) :]]
    assert elapsed == sorted(elapsed) and elapsed[0] > max(line["elapsed_s"] for line in old)
    facts = read_facts(run / STATE_NAME)
    last = [line["match"] for line in lines if "match" in line][-2:]
    assert [(match["mode"], match["steps"]) for match in last] == [("one", facts["steps"]), ("rest", facts["steps"])]
    newest = newest_checkpoint(run)
    assert newest is not None and facts["steps"] > steps and int(newest.stem) == facts["steps"]

    state = load_file(run / STATE_NAME)
    np.testing.assert_array_equal(state["net.input_scale"], first["net.input_scale"])  # measured once, at the beginning
    skipped = [line["learner"]["skipped"] for line in lines if "skipped" in line.get("learner", {})][-1]
    count = "optimiser.0.step"
    assert state[count] - first[count] == facts["steps"] - steps - skipped
    fresh = BlobNet(NETS["quick"], facts["steps"]).state_dict()["inputs.0.weight"].numpy()
    weights = "net.inputs.0.weight"
    assert np.corrcoef(state[weights].ravel(), first[weights].ravel())[0, 1] > 0.8
    assert abs(np.corrcoef(state[weights].ravel(), fresh.ravel())[0, 1]) < 0.2


# --- other settings are refused ---------------------------------------------------------------------------------------------

OTHER = {
    "rounds": """--players 4; --cards 2-4; --trump random; --dealer 0; --opponent-model policy; --root puct; --noise-alpha 1;
        --random-moves 0.25; --temperature 1; --temperature-decisions 99; --rivalry 0; --solved-cards 0; --opponent-pool threshold:0.2;
        --evaluator uniform; --seed 1; --determinizations 3; --simulations 16; --leaves-in-flight 1""",
    "policy": "--random-moves 0.03; --simulations 8; --temperature 1; --trump hearts; --dealer random",
    "games": "--cards 4; --determinizations 4; --opponent-pool random:0.25; --targets improved",
    "networks": "--opponent-pool older.safetensors:0.3; --simulations 9",
    "critic": """--players 3; --cards 3; --trump random; --dealer 0; --whole-games; --net small; --critic-net small; --buffer 2048; --batch 32;
        --replay-ratio 2; --learning-rate 1e-3; --critic-learning-rate 1e-3; --importance-cap 10; --redeals 0; --neurd-share 0;
        --weight-decay 0; --clip 2; --entropy-first 0.05; --entropy-last 0.02; --value-weight 0.5; --value-share 0.5;
        --tricks-weight 0; --ema 0.99; --gate; --rivalry 0; --opponent-pool older:0.2; --random-moves 0.03; --seed 0""",
    "visits": "--targets improved; --search 2x4; --root halving --targets improved; --opponent-model policy; --solved-cards 0",
    "wins": "--utility points; --seed 0",
}  # fmt: skip
"""For each run flags that make another one of it, which is named by the first of them."""


@pytest.mark.parametrize("name", OTHER)
def test_old_run_refuses_other_settings_and_names_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lay_out(name, tmp_path, RUNS[name]["kept"][0])
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for flags in OTHER[name].split(";"):
        flag, *more = flags.split()
        assert give(name, flag, *more) == 2, flags
        said = capsys.readouterr().err
        named = flag[2:].replace("-", "_")
        said = said.splitlines(keepends=True)[-1]  # after a line that names old flags
        assert re.fullmatch(rf"error: [^\n]*\b{named}: \S[^\n]* there, [^\n]+ now\b[^\n]*\n", said), said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_old_run_of_rounds_refuses_to_hold_games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out("rounds", tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = words("rounds")[1:]
    flags[flags.index("--rounds")] = "--games"
    assert selfplay.main(flags) == 2
    assert "unit: " in capsys.readouterr().err
