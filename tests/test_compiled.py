"""The compiled network: what loading it removes, trusts and leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from shmzero.net import BlobNet, save_checkpoint
from shmzero.net_device import CUDA_PACKAGES_FROM, CpuNetDevice, _torch_version, load_package, package_path
from tests.compiled import COMPILED, compiled_precision

LOADS = (
    "from tests.compiled import COMPILED, compiled_precision; from shmzero.net import BlobNet;"
    "from shmzero.net_device import CpuNetDevice;"
    "device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16);"
    "device.launch(0, 16); print(device.description, flush=True);"
)
"""A program that serves a batch with the compiled network."""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A temporary folder (TMPDIR) that its user keeps a file in."""
    (tmp_path / "mine" / "thesis").mkdir(parents=True)
    (tmp_path / "mine" / "thesis" / "chapter.txt").write_text("years of work")
    return tmp_path / "mine"


def is_as_it_was(mine: Path) -> bool:
    return os.listdir(mine) == ["thesis"] and (mine / "thesis" / "chapter.txt").read_text() == "years of work"


def test_selfplay_with_the_compiled_network_leaves_the_users_temporary_folder_as_it_was(
    mine: Path, cache: Path, tmp_path: Path
) -> None:
    save_checkpoint(BlobNet(COMPILED), tmp_path / "net.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "shmzero.selfplay", "--rounds", "4", "--preset", "light", "--device", "cpu*2",
         "--precision", compiled_precision(), "--checkpoint", tmp_path / "net.safetensors", "--out", tmp_path / "run"],
        env=os.environ | {"TMPDIR": str(mine), "SHMZERO_CACHE": str(cache)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count(f"cpu {compiled_precision()}, compiled\n") == 2, done.stdout + done.stderr
    assert is_as_it_was(mine)


def test_process_that_is_killed_leaves_nothing_of_its_compiled_network_behind(mine: Path, cache: Path) -> None:
    environment = os.environ | {"TMPDIR": str(mine), "SHMZERO_CACHE": str(cache)}
    program = subprocess.Popen([sys.executable, "-c", LOADS + "input()"], env=environment, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline().endswith(", compiled\n")
    program.kill()
    program.communicate()
    assert is_as_it_was(mine)


def test_compiled_network_without_a_usable_temporary_folder_is_served_eagerly_and_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMZERO_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
    (package,) = cache.glob("*.pt2")
    assert f"eagerly: {package} cannot be unpacked" in device.description and "/proc/nowhere" in device.description
    assert not device.compiling
    device.launch(0, 16)


def test_package_loader_of_cuda_takes_the_folder_that_it_is_given(
    mine: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU twin: the loader finds in the package what device it is for."""
    if _torch_version() < CUDA_PACKAGES_FROM:
        pytest.skip(f"torch {torch.__version__} takes no folder, and its compiled form on CUDA is not used")
    monkeypatch.setenv("SHMZERO_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(mine))
    device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
    net, weights = device.inference_net, device.weights
    assert device.compiled is not None
    call = load_package(package_path(net, "cpu"), "cuda:0", weights)
    features, masks = torch.rand(7, 256).half(), torch.full((7,), 255)
    for got, want in zip(call(features, masks, *weights), device.compiled(features, masks, *weights), strict=True):
        assert torch.equal(got, want)
    assert is_as_it_was(mine)


def test_damaged_package_is_refused_whichever_byte_is_wrong(
    mine: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package,) = cache.glob("*.pt2")
    whole, rng = package.read_bytes(), np.random.default_rng(1)
    damaged = tmp_path / "cache" / package.name
    damaged.parent.mkdir(mode=0o700)
    monkeypatch.setenv("SHMZERO_CACHE", str(damaged.parent))
    monkeypatch.setattr(tempfile, "tempdir", str(mine))
    for at in rng.integers(0, len(whole), 20):
        damaged.write_bytes(whole[:at])
        device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
        assert f"eagerly: {damaged} cannot be loaded" in device.description
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
        device.launch(0, 16)  # where it did not matter it is loaded, and answers
    assert is_as_it_was(mine)
