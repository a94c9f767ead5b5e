"""From a checkpoint to play: shmzero.load_network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shmzero
from shmzero import ConfigError, SearchConfig, load_network, play_rounds, search
from shmzero.matches.duplicate import play_match
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.nets.evaluator import NetEvaluator
from shmzero.runs.checkpoints import numbered_path
from shmzero.runs.folder import CHECKPOINT_FOLDER

SIZES = NetConfig(width=16, hidden=16, blocks=1)
CONFIG = SearchConfig(determinizations=1, simulations=6)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with the checkpoints of steps 9 and 100, of seeds 9 and 100."""
    folder = tmp_path / "run" / CHECKPOINT_FOLDER
    folder.mkdir(parents=True)
    for step in (9, 100):
        save_checkpoint(BlobNet(SIZES, seed=step), numbered_path(folder, step))
    return tmp_path / "run"


def rows() -> tuple[np.ndarray, np.ndarray]:
    rounds = [shmzero.Round.deal(seed=seed) for seed in range(20)]
    return np.stack([r.features() for r in rounds]), np.stack([r.mask() for r in rounds])


def test_network_of_a_run_is_its_newest_checkpoint(run: Path) -> None:
    expected = NetEvaluator(BlobNet(SIZES, seed=100)).evaluate_many(*rows())
    for path in (run, str(run), numbered_path(run / CHECKPOINT_FOLDER, 100)):
        network = load_network(path, device="cpu", precision="fp32")
        for found, right in zip(network.evaluate_many(*rows()), expected, strict=True):
            assert np.allclose(found, right, atol=1e-5) and found.dtype == np.float32
        assert network.path.name == "00000100.safetensors" and "fp32" in repr(network)
    older = load_network(numbered_path(run / CHECKPOINT_FOLDER, 9), device="cpu", precision="fp32")
    assert not np.allclose(older.evaluate_many(*rows())[1], expected[1], atol=1e-5)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_loaded_network_searches_and_plays(run: Path, precision: str) -> None:
    network = load_network(run, precision=precision)
    r = shmzero.Round.deal(seed=1)
    assert search(r, network, CONFIG).action in r.legal_actions()
    assert len(play_rounds(network, 3, CONFIG)) == 3
    assert play_match((network, CONFIG), "random", deals=2).deals == 2


def test_loaded_network_of_games_gives_its_policy_alone(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "games.safetensors"
    save_checkpoint(BlobNet(SIZES, seed=3), path, utility="win")
    with pytest.raises(ConfigError, match="values of the win of a game.*policy_only=True"):
        load_network(path)
    policies, values = load_network(path, device="cpu", policy_only=True).evaluate_many(*rows())
    assert np.allclose(policies.sum(axis=1), 1, atol=1e-3) and (values == 0).all()


def test_network_that_is_not_there_is_a_config_error(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    for path, said in ((tmp_path / "empty", "folder .*empty has no checkpoint"), (tmp_path / "none", "there is no checkpoint .*none"),
                       (tmp_path / "text.safetensors", "cannot be read")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            load_network(path)
    for device, said in (("gpu", "device is 'gpu'; allowed"), ("cuda:999", "device is 'cuda:999', and torch sees")):
        with pytest.raises(ConfigError, match=said):
            load_network(run, device=device)
    with pytest.raises(ConfigError, match="precision is 'fp8'"):
        load_network(run, precision="fp8")


def test_load_network_is_public_and_imports_torch_only_when_called() -> None:
    assert "load_network" in shmzero.__all__
    code = "import shmzero, sys; assert callable(shmzero.load_network); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=os.environ).returncode == 0
