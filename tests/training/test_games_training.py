"""Whole games in training: the score context of rows, shares of the win, and the command with a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shmzero import SearchConfig, _core, play_rounds
from shmzero.errors import ConfigError
from shmzero.inference.cpu import CpuNetDevice
from shmzero.learner.buffer import ReplayBuffer
from shmzero.matches.agents import make_agent
from shmzero.nets.checkpoint import load_checkpoint
from shmzero.runs.checkpoints import newest_checkpoint
from shmzero.runs.records import Records
from shmzero.training.config import TrainConfig
from tests.support.fakes import HashEvaluator

GAME_SHARE = 246


def games(number: int = 12) -> list[bytes]:
    return play_rounds(HashEvaluator(), number, SearchConfig(simulations=0, noise_fraction=0.1), cards="3", games=True)


def by_game(records: list[bytes]) -> list[list[dict]]:
    found: dict[int, list[dict]] = {}
    for record in records:
        one = _core.decode_record(record)
        found.setdefault(one["id"] // _core.MAX_ROUNDS_PER_GAME, []).append(one)
    return list(found.values())


def test_win_shares_are_those_of_the_final_totals_ties_included() -> None:
    records = games(60)
    shares = _core.game_win_shares(records)
    at, tied = 0, 0
    for rounds in by_game(records):
        totals = np.sum([one["scores"] for one in rounds], axis=0)
        assert rounds[-1]["totals_before"] == np.sum([one["scores"] for one in rounds[:-1]], axis=0).tolist()
        winners = totals == totals.max()
        tied += winners.sum() > 1
        for _ in rounds:
            np.testing.assert_allclose(shares[at, : len(totals)], winners / winners.sum())
            assert not shares[at, len(totals) :].any()
            at += 1
    assert at == len(records) and tied > 0


def test_win_shares_of_rounds_outside_games_and_of_unfinished_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="belongs to no game"):
        _core.game_win_shares(play_rounds(HashEvaluator(), 1, SearchConfig(simulations=0)))
    with pytest.raises(ValueError, match="last round of game 0 is not"):
        _core.game_win_shares(games(1)[:-1])
    tail = games(2)[3:]  # the first rounds of a game may be missing: the last one knows the score
    assert len(_core.game_win_shares(tail)) == len(tail)


def test_rows_of_games_know_the_score_and_take_what_the_game_came_to() -> None:
    records = games()
    shares = _core.game_win_shares(records)
    buffer = ReplayBuffer(5000)
    rows = buffer.add(records, shares)
    decided = [one for record in records for one in [_core.decode_record(record)] for _ in one["searched"]]
    assert rows == len(decided)
    share = buffer.tensors["features"][:rows, GAME_SHARE].float().numpy()
    np.testing.assert_allclose(share, [one["round_of_game"] / one["rounds_of_game"] for one in decided], atol=0.11)
    assert len(np.unique(share)) == decided[0]["rounds_of_game"]
    replayed = _core.replay(records)
    number = np.repeat(np.arange(len(records)), [len(_core.decode_record(record)["searched"]) for record in records])
    np.testing.assert_array_equal(buffer.tensors["utilities"][:rows].numpy(), shares[number, replayed["seats"]])


def test_utility_of_a_win_wants_games_and_no_search() -> None:
    for settings in ({}, {"targets": "visits", "search": "2x8"}, {"search": "2x8"}, {"search": "0,2x8"}):
        with pytest.raises(ConfigError, match="utility is 'win'"):
            TrainConfig.of(utility="win", whole_games=bool(settings), **settings)
    with pytest.raises(ConfigError, match="rivalry is 1.0"):
        TrainConfig.of(utility="win", whole_games=True, rivalry=1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run of some seconds, killed in the middle and continued."""
    folder = tmp_path_factory.mktemp("games")
    command = [
        sys.executable,
        "-m",
        "shmzero.train",
        str(folder),
        "--whole-games",
        "--utility",
        "win",
        "--cards",
        "3",
        "--minutes",
        "30",
        "--lanes",
        "128",
        "--batch",
        "256",
        "--checkpoint-s",
        "1",
        "--publish-s",
        "0.2",
        "--buffer",
        "20000",
        "--match-opponents",
        "threshold",
        "--evaluate-s",
        "0",
        "--json",
    ]
    first = subprocess.Popen([*command, "--rounds", str(10**9)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while newest_checkpoint(folder) is None and first.poll() is None:
            try:
                first.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
    finally:
        first.kill()
        first.wait()
    wanted = len(Records(folder)) + 3000
    done = subprocess.run([*command, "--rounds", str(wanted)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.slow
def test_train_on_games_keeps_each_game_once_and_whole(trained: tuple[Path, dict]) -> None:
    folder, summary = trained
    assert summary["complete"] and 0 < summary["new_rounds"] < summary["rounds"]
    for rounds in by_game(list(Records(folder))):
        assert [one["round_of_game"] for one in rounds] == list(range(rounds[0]["rounds_of_game"]))
    (one, rest) = summary["matches"]
    assert one["games"] and one["fair_share"] == 0.25 and 0 <= one["win_share"] <= 1 and rest["mode"] == "rest"


@pytest.mark.slow
def test_checkpoint_of_wins_plays_its_policy_and_refuses_to_be_searched(
    trained: tuple[Path, dict], tmp_path: Path
) -> None:
    folder, summary = trained
    assert load_checkpoint(summary["checkpoint"]) is not None
    assert make_agent(f"{folder}:policy").name.endswith(":policy")
    with pytest.raises(ConfigError, match="values of the win of a game"):
        make_agent(f"{folder}:2x8")
    net = load_checkpoint(summary["checkpoint"])
    with pytest.raises(ConfigError, match="values of the win of a game"):
        CpuNetDevice(net, "fp32", False, 8, searched=True).swap(summary["checkpoint"])
    CpuNetDevice(net, "fp32", False, 8, searched=False).swap(summary["checkpoint"])
    done = subprocess.run(
        [sys.executable, "-m", "shmzero.selfplay", "--rounds", "2", "--checkpoint", summary["checkpoint"], "--out", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "values of the win of a game" in done.stderr
