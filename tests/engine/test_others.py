"""Seats that others hold: bots and a second network, beside the agent that learns."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shmzero import Round, SearchConfig, _core
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.run import run
from shmzero.errors import ConfigError
from shmzero.game.bots import built_in_bot, other_agents
from shmzero.inference.cpu import CpuNetDevice
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.mcts.play import play_settings
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.runs.checkpoints import newest_checkpoint
from shmzero.runs.records import Records
from tests.support.processes import committed, start, wait_for

SMALL = NetConfig(width=16, hidden=16, blocks=1)


def played(others: str, rounds: int, search: SearchConfig, **more: object) -> list[bytes]:
    run = _core.PlayRun(play_settings(search, 5, others=others, **more), range(rounds), rounds)  # type: ignore[arg-type]
    evaluator = HashEvaluator()
    while (rows := run.step()) is not None:
        run.answer(*evaluator.evaluate_many(*rows))
    return [data for _, records in sorted(run.finished()) for data in records]


def decisions(data: bytes) -> list[tuple[Round, int, bool]]:
    """(position, action, whether it was the agent's) of all decisions that had a choice."""
    record = _core.decode_record(data)
    searched = {one["ply"] for one in record["searched"]}
    r = Round.from_hands(record["hands"], record["trump"], record["dealer"])
    found = []
    for ply, action in enumerate(record["actions"]):
        if len(r.legal_actions()) > 1:
            found.append((r.copy(), action, ply in searched))
        r.apply(action)
    return found


@pytest.mark.parametrize("search", [SearchConfig(simulations=0), SearchConfig(determinizations=2, simulations=4)])
def test_seat_of_a_bot_plays_as_the_bot_and_the_agent_keeps_one(search: SearchConfig) -> None:
    threshold = built_in_bot("threshold")
    assert threshold is not None
    agents = set()
    for data in played("threshold:1", 40, search, players="3-5", cards="1-6"):
        own = {r.seat for r, _, agent in decisions(data) if agent}
        assert len(own) <= 1  # none where its every move was forced
        agents |= own
        for r, action, agent in decisions(data):
            assert agent == (r.seat in own) or not own
            assert agent or action == _core.bot_action(r, threshold)
    assert len(agents) > 2


def test_share_of_the_seats_is_what_was_asked_for() -> None:
    held = total = 0
    for data in played("random:0.3,threshold:0.1", 1000, SearchConfig(simulations=0)):
        of_agent = {r.seat for r, _, agent in decisions(data) if agent}
        held += 4 - len(of_agent)
        total += 3  # one is the agent's
    assert abs(held / total - 0.4) < 4 * (0.4 * 0.6 / total) ** 0.5


def test_rounds_with_bots_are_the_same_with_one_worker_and_with_three(tmp_path: Path) -> None:
    kept = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        config = SelfPlayConfig.of(
            rounds=150,
            evaluator="hash",
            determinizations=2,
            simulations=8,
            workers=workers,
            opponent_pool="mc20:0.3,random:0.2",
        )
        assert run(config, folder)["complete"]
        kept.append(sorted(Records(folder)))
    assert kept[0] == kept[1] and len(kept[0]) == 150


def test_marked_rows_are_the_other_networks_also_after_it_changes(tmp_path: Path) -> None:
    nets = [BlobNet(SMALL, seed=seed) for seed in range(2)] + [
        BlobNet(NetConfig(width=32, hidden=16, blocks=2), seed=2)
    ]
    device = CpuNetDevice(nets[0], "fp32", False, 64)
    rng = np.random.default_rng(0)
    staging = device.staging(0)
    staging.features[:] = rng.random(staging.features.shape)
    staging.masks[:] = rng.integers(1, 1 << 52, 64, dtype=np.uint64)
    marked = rng.random(64) < 0.4
    staging.masks[marked] |= np.uint64(_core.OTHER_NETWORK)

    def answers(net: BlobNet) -> tuple[np.ndarray, np.ndarray]:
        words = torch.from_numpy(staging.masks.view(np.int64))
        legal = ((words[:, None] >> torch.arange(52)) & 1).bool()
        with torch.inference_mode():
            policies, values = net.policy_value(torch.from_numpy(staging.features).float(), legal)
        return policies.numpy(), values.numpy()

    for other in (None, 1, 2):
        if other is not None:
            save_checkpoint(nets[other], tmp_path / f"{other}.safetensors")
            device.seat_other(str(tmp_path / f"{other}.safetensors"))
        device.launch(0, 64)
        for got, ours, theirs in zip(
            (staging.policies, staging.values), answers(nets[0]), answers(nets[other or 0]), strict=True
        ):
            np.testing.assert_allclose(got, np.where(marked[:, None], theirs, ours), atol=1e-5)


def test_network_in_the_other_seats_plays_its_best_action(tmp_path: Path) -> None:
    net = BlobNet(SMALL, seed=9)
    save_checkpoint(net, tmp_path / "old.safetensors")
    config = SelfPlayConfig.of(
        rounds=30,
        determinizations=2,
        simulations=8,
        net="quick",
        precision="fp32",
        compile=False,
        opponent_pool=f"{tmp_path / 'old.safetensors'}:0.6",
    )
    assert run(config, tmp_path / "run")["complete"]
    same = number = 0
    for data in Records(tmp_path / "run"):
        for r, action, agent in decisions(data):
            if agent:
                continue
            with torch.inference_mode():
                policies, _ = net.policy_value(torch.from_numpy(r.features())[None], torch.from_numpy(r.mask())[None])
            number += 1
            same += r.action_from_canonical(int(policies[0].argmax())) == action
    assert number > 100 and same > 0.99 * number  # but for ties within rounding


@pytest.mark.slow
def test_training_against_older_checkpoints_and_bots(tmp_path: Path) -> None:
    process = start("shmzero.train", tmp_path, "--opponent-pool", "older:0.3,threshold:0.2", "--rounds", 10**9, "--minutes", 30,
                    "--match-opponents", "", "--lanes", 256, "--batch", 256, "--checkpoint-s", 0.5, "--json")  # fmt: skip
    wait_for(lambda: newest_checkpoint(tmp_path), process)
    known = committed(tmp_path)
    wait_for(lambda: committed(tmp_path) > known + 2000, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert json.loads(out)["steps"] > 10
    found = [agent for data in Records(tmp_path) for _, _, agent in decisions(data)]
    assert 0.55 < np.mean(found) < 0.7  # all but 0.5 of three seats in four


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ("threshold", "NAME:SHARE"),
        ("threshold:2", "NAME:SHARE"),
        ("threshold:x", "NAME:SHARE"),
        (":0.5", "NAME:SHARE"),
        ("threshold:0.6,random:0.6", "at most 1"),
        ("a.safetensors:0.1,older:0.1", "networks a.safetensors, older"),
        ("mc0:0.5", "playouts"),
    ],
)
def test_others_bad_settings_are_named(others: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SelfPlayConfig.of(opponent_pool=others)


def test_others_networks_need_a_network_and_older_ones_a_training_run(tmp_path: Path) -> None:
    assert [share for _, _, share in other_agents("older:0.25,mc90:0.5")] == [0.25, 0.5]
    with pytest.raises(ConfigError, match="evaluator 'hash'"):
        SelfPlayConfig.of(opponent_pool="older:0.5", evaluator="hash")
    for others, named in (("older:0.5", "training runs"), ("missing.safetensors:0.5", "missing.safetensors")):
        done = subprocess.run(
            [sys.executable, "-m", "shmzero.selfplay", "--opponent-pool", others, "--out", str(tmp_path / "run")],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 2 and named in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
