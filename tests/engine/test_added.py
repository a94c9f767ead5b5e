"""A fleet that gets its units one after another, and its networks by value: as an engine elsewhere does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shmzero import _core
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.fleet import Fleet
from shmzero.engine.plan import resolve
from shmzero.engine.weights import CheckpointFile
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.mcts.play import play_rounds
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from tests.support.processes import wait_for

SMALL = NetConfig(width=16, hidden=16, blocks=1)


def test_fleet_plays_the_units_that_it_is_given_while_it_plays() -> None:
    config = SelfPlayConfig.of(evaluator="hash", preset="light", workers=2)
    found: dict[int, list[bytes]] = {}
    with Fleet(resolve(config), None, 60) as fleet:
        assert fleet.done and fleet.poll(0.0) == []
        for units in (range(20), range(20, 60)):
            fleet.add_units({unit: [] for unit in units})
            assert not fleet.done
            wait_for(lambda: found.update(fleet.poll(0.02)) or fleet.done)
    assert [found[unit] for unit in range(60)] == [
        [r] for r in play_rounds(HashEvaluator(), 60, config.search_config())
    ]


def checkpoint(folder: Path, seed: int) -> Path:
    path = folder / f"{seed}.safetensors"
    save_checkpoint(BlobNet(SMALL, seed=seed), path)
    return path


def test_fleet_plays_with_checkpoints_that_it_gets_by_value(tmp_path: Path) -> None:
    """The network, and that of the others' seats: both from the start, and later ones, good and bad."""
    paths = [checkpoint(tmp_path, seed) for seed in range(4)]
    network, other, later, later_other = [CheckpointFile.read(path) for path in paths]
    config = SelfPlayConfig.of(
        checkpoint=paths[0], opponent_pool=f"{paths[1]}:0.5", simulations=0, workers=1, compile=False, device="cpu"
    )
    for path in paths:
        path.unlink()
    found: dict[int, list[bytes]] = {}
    said: list[str] = []

    def attend(fleet: Fleet, until: Callable[[], object]) -> None:
        while not until():
            found.update(fleet.poll(0.02))
            said.extend(fleet.events)
            fleet.events.clear()

    with Fleet(resolve(config), range(10), 10, checkpoint=network, other=other) as fleet:
        attend(fleet, lambda: fleet.done)
        fleet.seat_other(CheckpointFile("bad_other", b"no checkpoint"))
        fleet.publish(CheckpointFile("bad", b"no checkpoint"))
        attend(fleet, lambda: len(said) >= 3)
        fleet.seat_other(later_other)
        assert fleet.publish(later) == 2
        attend(fleet, lambda: fleet.served.version == 2)
        fleet.add_units({unit: [] for unit in range(10, 20)})
        attend(fleet, lambda: fleet.done)
        assert fleet.served.path == str(paths[2])
    ready, *refusals = [line for line in said if line != "inference process 0 serves weights 2"]
    assert ready.startswith("inference process 0 serves ") and len(refusals) == 2
    assert sorted(name for name in ("bad_other", "bad") for line in refusals if f" {name} " in line) == [
        "bad",
        "bad_other",
    ]
    versions = [{one["version"] for one in _core.decode_record(found[unit][0])["searched"]} for unit in range(20)]
    assert versions == [{0}] * 10 + [{2}] * 10
