"""Self-play on a real Ray cluster: what is lost costs nothing and doubles nothing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmzero.mcts.config import PRESETS, SearchConfig
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.mcts.play import play_rounds
from tests.support.processes import committed, wait_for
from tests.support.ray_nodes import OURS, RayNodes, any_cluster_runs, pids_of, ray_nodes

pytest.importorskip("ray")
LIGHT = dict(zip(("determinizations", "simulations"), PRESETS["light"], strict=True))
PLAY = ("--evaluator", "hash", "--preset", "light", "--json")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with ray_nodes(2) as nodes:
        yield nodes
    assert not pids_of(*OURS)


def start(cluster: RayNodes, module: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"shmzero.{module}", *map(str, arguments)],
        env=cluster.environment | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """The summary of a command that has to succeed, and what it said."""
    out, said = process.communicate()
    assert process.returncode == 0, said
    summary: dict[str, Any] = json.loads(out)  # nothing else is printed there, whatever was lost
    return summary, said


def records(folder: Path) -> list[tuple[int, bytes]]:
    with sqlite3.connect(folder / "rounds.sqlite") as connection:
        return connection.execute("SELECT unit, record FROM rounds ORDER BY id").fetchall()


def rounds_of_one_machine(number: int) -> list[tuple[int, bytes]]:
    return list(enumerate(play_rounds(HashEvaluator(), number, SearchConfig(**LIGHT, noise_fraction=0.25))))


@pytest.mark.skipif(any_cluster_runs(), reason="a Ray cluster runs on this machine")
def test_auto_without_a_cluster_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shmzero.selfplay", "--cluster", "auto", "--out", str(tmp_path / "run")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    going = subprocess.run(command, env=environment | {"RAY_TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    if any_cluster_runs():
        pytest.skip("a Ray cluster was started on this machine")
    assert going.returncode == 2 and going.stdout == ""
    assert "cluster is 'auto', and no Ray cluster runs on this machine" in going.stderr.splitlines()[-1]


def test_records_are_those_of_one_machine_bit_for_bit(cluster: RayNodes, tmp_path: Path) -> None:
    arguments = (*PLAY, "--rounds", 4000, "--cluster", cluster.address, "--out", tmp_path / "run")
    summary, said = done(start(cluster, "selfplay", *arguments))
    assert summary["complete"] and summary["new_rounds"] == 4000 and summary["restarts"] == 0, said
    assert sum(node["rounds"] for node in summary["nodes"].values()) == 4000
    assert records(tmp_path / "run") == rounds_of_one_machine(4000)


def test_folder_goes_on_from_one_machine_to_a_cluster_and_back(cluster: RayNodes, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    done(start(cluster, "selfplay", *PLAY, "--rounds", 300, *out))
    summary, _ = done(start(cluster, "selfplay", *PLAY, "--rounds", 900, "--cluster", cluster.address, *out))
    assert summary["new_rounds"] == 600
    summary, _ = done(start(cluster, "selfplay", *PLAY, "--rounds", 1200, *out))
    assert summary["new_rounds"] == 300 and records(tmp_path / "run") == rounds_of_one_machine(1200)


def test_games_come_whole_from_a_cluster(cluster: RayNodes, tmp_path: Path) -> None:
    games = ("--games", 6, "--cards", 4, *PLAY)
    done(start(cluster, "selfplay", *games, "--cluster", cluster.address, "--out", tmp_path / "cluster"))
    done(start(cluster, "selfplay", *games, "--out", tmp_path / "one"))
    assert records(tmp_path / "cluster") == records(tmp_path / "one")


def kill(*words: str) -> bool:
    """Kill one process whose command line has one of these words, if there is one."""
    for pid in pids_of(*words)[:1]:
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def test_worker_that_was_replaced_is_counted_in_the_summary(cluster: RayNodes, tmp_path: Path) -> None:
    arguments = (*PLAY, "--rounds", 12_000, "--cluster", cluster.address, "--out", tmp_path / "run")
    going = start(cluster, "selfplay", *arguments)
    wait_for(lambda: committed(tmp_path / "run"), going)
    assert kill("shmzero.engine.worker")
    summary, said = done(going)
    assert summary["restarts"] == sum(node["restarts"] for node in summary["nodes"].values()) == 1, said


def test_what_is_killed_costs_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """An engine, a worker and an inference process within one, a node; then one joins."""
    run, rounds = tmp_path / "run", 12_000
    with ray_nodes(2) as cluster:
        going = start(cluster, "selfplay", *PLAY, "--rounds", rounds, "--cluster", cluster.address, "--out", run)

        def more() -> Callable[[], bool]:
            now = committed(run)
            return lambda: committed(run) > now

        wait_for(lambda: len(pids_of("shmzero.engine.worker")) == 4, going)  # both nodes play
        wait_for(more(), going)
        for word in OURS:
            wait_for(lambda word=word: kill(word), going)
            wait_for(more(), going)
        cluster.remove(cluster.nodes[0])
        cluster.add()
        summary, said = done(going)
        assert not pids_of(*OURS)
    assert summary["complete"] and summary["restarts"] >= 3, said
    assert "lost its engine and gets another one" in said
    assert records(run) == rounds_of_one_machine(rounds)


@pytest.mark.slow
def test_driver_that_is_killed_goes_on_by_the_same_command(cluster: RayNodes, tmp_path: Path) -> None:
    arguments = (*PLAY, "--rounds", 8000, "--cluster", cluster.address, "--out", tmp_path / "run")
    going = start(cluster, "selfplay", *arguments)
    wait_for(lambda: committed(tmp_path / "run"), going)
    going.kill()
    going.communicate()
    summary, _ = done(start(cluster, "selfplay", *arguments))
    assert 0 < summary["new_rounds"] < 8000
    assert records(tmp_path / "run") == rounds_of_one_machine(8000)


@pytest.mark.slow
def test_engine_that_is_stopped_is_replaced(cluster: RayNodes, tmp_path: Path) -> None:
    arguments = (*PLAY, "--rounds", 20_000, "--stall-s", 3, "--cluster", cluster.address, "--out", tmp_path / "run")
    going = start(cluster, "selfplay", *arguments)
    wait_for(lambda: committed(tmp_path / "run"), going)
    os.kill(pids_of("ray::NodeEngine")[0], signal.SIGSTOP)
    summary, said = done(going)
    assert summary["complete"]
    assert "has not answered for 3 s" in said or summary["seconds"] < 3, said
    assert records(tmp_path / "run") == rounds_of_one_machine(20_000)


def test_first_ctrl_c_keeps_what_was_finished_and_leaves_nothing(cluster: RayNodes, tmp_path: Path) -> None:
    arguments = (*PLAY, "--rounds", 10**7, "--cluster", cluster.address, "--out", tmp_path / "run")
    going = start(cluster, "selfplay", *arguments)
    wait_for(lambda: committed(tmp_path / "run"), going)
    going.send_signal(signal.SIGINT)
    out, said = going.communicate()
    assert going.returncode == 130, said
    assert json.loads(out)["rounds"] == len(records(tmp_path / "run")) > 0
    wait_for(lambda: not pids_of(*OURS))


# --- what cannot be ---------------------------------------------------------------------------------------


def refused(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and last line of a command that has to fail."""
    out, said = process.communicate()
    assert out == "" and said.splitlines()[-1].startswith("error: "), said
    assert "Traceback" not in said
    return process.returncode, said.splitlines()[-1]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("foo", "cluster is 'foo'; allowed: auto, local, or HOST:PORT of its head"),
        ("127.0.0.1:1", "cluster is '127.0.0.1:1', and nothing answers there: Connection refused"),
    ],
)
def test_address_without_a_cluster_is_refused(address: str, words: str, tmp_path: Path, cluster: RayNodes) -> None:
    going = start(cluster, "selfplay", "--cluster", address, "--out", tmp_path / "run")
    code, said = refused(going)
    assert code == 2 and words in said and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_node_of_another_build_is_refused(tmp_path: Path) -> None:
    """Its package is a copy with one line more."""
    from shmzero.cluster.messages import Build

    root = Path(__file__).parents[2]
    subprocess.run(["cp", "-r", root / "shmzero", tmp_path / "shmzero"], check=True)
    with (tmp_path / "shmzero" / "version.py").open("a") as file:
        file.write("# another build\n")
    with ray_nodes(0) as nodes:
        nodes.add(PYTHONPATH=str(tmp_path))
        command = (*PLAY, "--rounds", 100, "--cluster", nodes.address, "--out", tmp_path / "run")
        going = subprocess.Popen(
            [sys.executable, "-m", "shmzero.selfplay", *map(str, command)],
            env=nodes.environment | {"PYTHONPATH": str(root)},
            cwd=tmp_path / "shmzero",  # Ray's workers begin in the driver's folder, and look there first
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        code, said = refused(going)
    assert code == 2 and "is not used: it runs shmzero " in said and f"this machine runs {Build.here()}" in said


@pytest.mark.slow
def test_device_that_no_node_has_is_refused(cluster: RayNodes, tmp_path: Path) -> None:
    going = start(
        cluster, "selfplay", "--device", "cuda", "--cluster", cluster.address, "--out", tmp_path / "run"
    )  # fmt: skip
    code, said = refused(going)
    assert code == 2 and "device is 'cuda:0'" in said and "is not used: " in said


def test_cluster_without_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from shmzero.cluster.connection import Connection
    from shmzero.errors import ConfigError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "shmzero\[cluster\]"'):
        Connection("auto")
