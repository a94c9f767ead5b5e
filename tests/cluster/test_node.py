"""The engine of a node, in this process and without Ray: what it plays is what one machine plays."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import pytest

from shmzero import _core
from shmzero.cluster import node as node_module
from shmzero.cluster.messages import CHUNK_BYTES, Answer, Build, Part, Setup, Status, Step
from shmzero.cluster.node import NodeEngine, size_of
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.weights import CheckpointFile
from shmzero.errors import ConfigError
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.mcts.play import play_rounds
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig

LIGHT = SelfPlayConfig.of(evaluator="hash", preset="light", workers=2)


def setup_of(config: SelfPlayConfig, num_units: int, version: int = 0) -> Setup:
    return Setup(config, num_cpus=2, num_gpus=0, num_units=num_units, version=version)


class Driver:
    """Steps a node on, and keeps what it has told."""

    def __init__(self, config: SelfPlayConfig, num_units: int) -> None:
        self.node = NodeEngine()
        self.name = self.node.greet().engine
        self.found: dict[int, list[bytes]] = {}
        self.parts: list[Part] = []
        self.sizes: list[int] = []
        self.said: list[str] = []
        self.finished: set[int] = set()
        answer = self.node.begin(setup_of(config, num_units), None, None)
        assert answer.error is None and answer.status.num_workers == 2
        self.status = answer.status

    def take(self, answer: Answer) -> Answer:
        self.sizes.append(sum(map(size_of, answer.parts)))
        self.parts += answer.parts
        self.said += answer.events
        self.status = answer.status
        for part in answer.parts:
            records = self.found.setdefault(part.unit, [])
            assert part.first == len(records) and part.unit not in self.finished
            records += part.records
            if part.is_last:
                self.finished.add(part.unit)
        return answer

    def step(self, units: dict[int, list[bytes]] | None = None, paused: bool = False) -> Answer:
        return self.take(self.node.step(Step(self.name, units or {}, paused)))

    def until_finished(self, *units: int) -> None:
        while not self.finished.issuperset(units):
            assert self.step().error is None

    def end(self) -> None:
        self.take(self.node.end())


def test_rounds_are_those_of_one_machine_and_answers_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "STEP_S", 3.0)  # so that an answer is full before its time is over
    driver = Driver(LIGHT, 2000)
    assert driver.status.wanted > 0
    driver.step({unit: [] for unit in range(1000)})
    driver.step({unit: [] for unit in range(1000, 2000)})
    driver.until_finished(*range(2000))
    driver.end()
    expected = play_rounds(HashEvaluator(), 2000, LIGHT.search_config())
    assert [driver.found[unit] for unit in range(2000)] == [[record] for record in expected]
    assert CHUNK_BYTES / 2 < max(driver.sizes) <= CHUNK_BYTES
    assert driver.status.num_workers == 0 and driver.node.pids() == {"engine": [os.getpid()]}


def test_node_that_ends_still_tells_of_what_was_replaced_and_counted() -> None:
    driver = Driver(LIGHT, 10)
    os.kill(driver.node.pids()["workers"][0], signal.SIGKILL)
    while not driver.status.restarts:
        driver.step()
    driver.step({unit: [] for unit in range(10)})
    driver.until_finished(*range(10))
    played = driver.status.counters["decisions"]
    driver.end()
    assert driver.status.restarts == 1 and driver.status.counters["decisions"] >= played > 0
    assert driver.status.num_workers == 0


GAMES = SelfPlayConfig.of(evaluator="hash", preset="light", games=4, cards="3", workers=2)


def games_of_one_machine() -> list[list[bytes]]:
    driver = Driver(GAMES, 4)
    driver.step({unit: [] for unit in range(4)})
    driver.until_finished(*range(4))
    driver.end()
    return [driver.found[unit] for unit in range(4)]


def test_games_go_on_elsewhere_from_the_rounds_that_were_told() -> None:
    whole = games_of_one_machine()
    assert [len(records) for records in whole] == [len(whole[0])] * 4 and len(whole[0]) > 6
    driver = Driver(GAMES, 4)
    begun = {unit: whole[unit][: 2 * unit] for unit in range(4)}
    driver.found = {unit: list(records) for unit, records in begun.items()}
    driver.step(begun)
    driver.until_finished(*range(4))
    driver.end()
    assert [driver.found[unit] for unit in range(4)] == whole


def test_step_for_another_engine_is_not_taken() -> None:
    driver = Driver(LIGHT, 10)
    answer = driver.node.step(Step("another", {1: []}, False))
    assert answer.parts == [] and answer.engine == driver.name
    driver.step({2: []})
    driver.until_finished(2)
    driver.end()
    assert driver.finished == {2}
    assert NodeEngine().step(Step(driver.name, {1: []}, False)).status.num_workers == 0


def test_node_begins_anew_with_other_settings() -> None:
    driver = Driver(LIGHT, 10)
    driver.step({unit: [] for unit in range(10)})
    before = driver.node.pids()["workers"]
    other = SelfPlayConfig.of(evaluator="hash", determinizations=1, simulations=5, workers=2)
    driver.take(driver.node.begin(setup_of(other, 10), None, None))
    driver.found.clear()
    driver.finished.clear()
    assert not set(before) & set(driver.node.pids()["workers"])
    driver.step({unit: [] for unit in range(10)})
    driver.until_finished(*range(10))
    driver.end()
    expected = play_rounds(HashEvaluator(), 10, other.search_config())
    assert [driver.found[unit] for unit in range(10)] == [[record] for record in expected]


def test_setup_that_cannot_be_is_answered_with_its_error() -> None:
    node = NodeEngine()
    answer = node.begin(setup_of(SelfPlayConfig.of(evaluator="hash", device="cuda:7"), 10), None, None)
    assert isinstance(answer.error, ConfigError) and "cuda:7" in str(answer.error)
    assert node.begin(setup_of(LIGHT, 10), None, None).error is None
    node.end()


def test_paused_node_begins_nothing_and_waits() -> None:
    driver = Driver(LIGHT, 10)
    driver.step({1: []}, paused=True)
    assert driver.step(paused=True).status.waits and not driver.found
    driver.until_finished(1)
    driver.end()


def test_node_plays_with_the_checkpoints_that_come_with_its_setup_and_its_steps(tmp_path: Path) -> None:
    files = []
    for seed in range(2):
        save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1), seed=seed), tmp_path / "net.safetensors")
        files.append(CheckpointFile.read(tmp_path / "net.safetensors"))
    (tmp_path / "net.safetensors").unlink()
    config = SelfPlayConfig.of(simulations=0, workers=2, device="cpu", compile=False)
    node = NodeEngine()
    name = node.greet().engine
    answer = node.begin(setup_of(config, 20, version=3), files[0], None)
    answer = node.step(Step(name, {unit: [] for unit in range(10)}, False, version=3))
    parts = list(answer.parts)
    while len(parts) < 10:
        parts += node.step(Step(name, {}, False)).parts
    answer = node.step(Step(name, {}, False, version=5), files[1])
    while answer.status.served != 5:
        answer = node.step(Step(name, {}, False))
        assert answer.error is None
    parts += node.step(Step(name, {unit: [] for unit in range(10, 20)}, False)).parts
    while len(parts) < 20:
        parts += node.step(Step(name, {}, False)).parts
    node.end()
    found = {part.unit: {one["version"] for one in _core.decode_record(part.records[0])["searched"]} for part in parts}
    assert found == {unit: {3 if unit < 10 else 5} for unit in range(20)}


def test_children_have_the_threads_of_their_plan_whatever_ray_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    config = SelfPlayConfig.of(evaluator="hash", preset="light", workers=2, inference_threads=3)
    driver = Driver(config, 1)
    threads = {
        kind: {
            word.decode().partition("=")[2]
            for pid in driver.node.pids()[kind]
            for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if word.startswith(b"OMP_NUM_THREADS=")
        }
        for kind in ("workers", "servers")
    }
    driver.end()
    assert threads == {"workers": {"1"}, "servers": {"3"}}


def test_build_tells_what_has_to_be_the_same_everywhere() -> None:
    words = str(Build.here())
    assert words == NodeEngine().greet().build
    assert f"features {_core.FEATURE_VERSION}" in words and f"records {_core.RECORD_VERSION}" in words


@pytest.mark.parametrize("error", [None, ConfigError("no such device")])
def test_answer_that_has_travelled_is_what_was_sent(error: ConfigError | None) -> None:
    parts = [Part(3, 0, True, [b"a"]), Part(4, 2, False, [b"b", b"c"])]
    sent = Answer("engine", parts, ["a line"], Status(served=7, counters={"rows": 1}), error)
    come = pickle.loads(pickle.dumps(sent))
    assert repr(come) == repr(sent) and [type(part) for part in come.parts] == [Part, Part]
    assert b"Part" not in pickle.dumps(sent)  # each would cost calls of Python functions
