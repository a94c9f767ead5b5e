"""The network, its checkpoints, and serving it: fold, precision, swaps, compiled callables."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from shmzero import NetConfig, SearchConfig, _core, play_rounds
from shmzero.errors import ConfigError
from shmzero.inference import compilation
from shmzero.inference.cpu import PAD_FROM_ROWS, PAD_ROWS_TO, CpuNetDevice
from shmzero.inference.device import Staging, new_staging
from shmzero.inference.loop import BatchLoop
from shmzero.inference.messages import COMMANDS, TakeWeights
from shmzero.inference.process import ParentControl
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.nets import compiled, precision
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import load_checkpoint, save_checkpoint
from shmzero.nets.evaluator import NetEvaluator
from shmzero.nets.precision import resolve_precision
from shmzero.processes.messages import encode
from shmzero.shm.segment import create_private
from tests.support.compiled import COMPILED, compiled_precision, copied

SMALL = NetConfig(width=32, hidden=64, blocks=2)
PRECISIONS = ["fp32", "bf16", "fp16"]
COMPILED_PRECISION = compiled_precision()


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    return _core.replay(play_rounds(HashEvaluator(), 40, SearchConfig(determinizations=1, simulations=8), seed=2))


def wide(masks: np.ndarray) -> np.ndarray:
    return (masks[:, None] >> np.arange(52, dtype=np.uint64) & np.uint64(1)).astype(bool)


def eager(net: BlobNet, features: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return NetEvaluator(net).evaluate_many(features.astype(np.float32), wide(masks))


def served(device: CpuNetDevice, features: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    staging = device.staging(0)
    staging.features[: len(masks)], staging.masks[: len(masks)] = features, masks
    device.launch(0, len(masks))
    return staging.policies[: len(masks)].copy(), staging.values[: len(masks)].copy()


@pytest.mark.parametrize("trunks", [1, 2])
def test_inference_net_fp32_equals_the_eager_network(rows: dict[str, np.ndarray], trunks: int) -> None:
    net = BlobNet(NetConfig(width=32, hidden=64, blocks=2, trunks=trunks), seed=3)
    net.input_scale.copy_(torch.linspace(0.5, 2.0, 256))
    features, masks = rows["features"][:300], rows["masks"][:300]
    got, want = served(CpuNetDevice(net, "fp32", False, 512), features, masks), eager(net, features, masks)
    assert np.abs(got[0] - want[0]).max() < 1e-5 and np.abs(got[1] - want[1]).max() < 1e-4


@pytest.mark.parametrize("trunks", [1, 2])
def test_inference_net_without_values_gives_the_same_policies_from_one_trunk(
    rows: dict[str, np.ndarray], trunks: int
) -> None:
    net = BlobNet(NetConfig(width=32, hidden=64, blocks=2, trunks=trunks), seed=3)
    asked = rows["features"][:100], rows["masks"][:100]
    whole, part = (CpuNetDevice(net, "fp32", False, 128, searched) for searched in (None, False))
    want, got = served(whole, *asked), served(part, *asked)
    assert np.array_equal(got[0], want[0])
    assert np.array_equal(got[1], want[1] if trunks == 1 else np.zeros((100, 1), np.float32))
    assert len(part.weights) == len(whole.weights) if trunks == 1 else len(part.weights) < len(whole.weights)
    paths = {compiled.package_path(device.inference_net, "cpu") for device in (whole, part)}
    assert len(paths) == trunks, "each has a compiled callable of its own"


@pytest.mark.parametrize("count", [PAD_FROM_ROWS + 1, PAD_FROM_ROWS + PAD_ROWS_TO, 203])
def test_padding_rows_change_no_answer(count: int, rows: dict[str, np.ndarray]) -> None:
    device = CpuNetDevice(BlobNet(SMALL), "bf16", False, 203)
    features, masks = rows["features"][:203], rows["masks"][:203]
    want = served(device, features, masks)
    staging, asked = device.staging(0), []
    net = device.inference_net
    device.compilation.callable = lambda f, *rest: (asked.append(len(f)), net(f, *rest))[1]
    staging.features[:] = np.nan  # of no consequence where nobody asked
    staging.policies[:] = staging.values[:] = -1
    got = served(device, features[:count], masks[:count])
    assert asked == [min(203, -(-count // PAD_ROWS_TO) * PAD_ROWS_TO)]
    assert np.allclose(got[0], want[0][:count], atol=2e-2) and np.allclose(got[1], want[1][:count], atol=2e-2)
    assert (staging.policies[count:] == -1).all() and (staging.values[count:] == -1).all()


@pytest.mark.parametrize(
    "flags, faster, want",
    [
        (set(), True, "fp32"),
        ({"avx512_bf16"}, False, "fp32"),
        ({"avx512_bf16"}, True, "bf16"),
        ({"amx_bf16"}, True, "bf16"),
    ],
)
def test_precision_auto_is_bf16_where_the_cpu_has_it_and_it_is_faster(
    flags: set[str], faster: bool, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    product, seconds = torch.nn.functional.linear, iter(range(0, 10**6))
    slow = torch.float32 if faster else torch.bfloat16

    def linear(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if x.dtype == slow:
            next(seconds)  # the clock goes on while the slower one computes
        return product(x, *rest)

    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    precision.bf16_is_faster.cache_clear()
    assert resolve_precision("auto", "cpu") == want
    precision.bf16_is_faster.cache_clear()
    assert resolve_precision("auto", "cuda:0") == "fp16" and resolve_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inference_net_empty_mask_gives_zeros_and_a_value(precision: str) -> None:
    device = CpuNetDevice(BlobNet(SMALL), precision, False, 8)
    policies, values = served(device, np.zeros((3, 256), np.float16), np.array([0, 5, 0], np.uint64))
    assert not policies[[0, 2]].any() and np.isfinite(values).all()
    assert policies[1].sum() == pytest.approx(1, abs=1e-6) and set(np.flatnonzero(policies[1])) == {0, 2}


@pytest.fixture(scope="module")
def confident(rows: dict[str, np.ndarray]) -> BlobNet:
    """A network that is sure of itself, but not so sure that nothing could change its mind."""
    net = BlobNet(COMPILED, seed=4)
    states, masks = torch.from_numpy(rows["features"].astype(np.float32)), torch.from_numpy(wide(rows["masks"]))
    # Each position's first legal action, so that the policy can become sure of itself.
    wanted = masks.float().argmax(dim=1)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(500):
        policies, _ = net.policy_value(states, masks)
        if policies.max(dim=1).values.mean() >= 0.65:
            break
        loss = -torch.log(policies.gather(1, wanted[:, None]) + 1e-9).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net


@pytest.mark.parametrize("form", ["bf16", "fp16", "compiled"])
def test_probabilities_of_a_confident_network_are_those_of_fp32(
    rows: dict[str, np.ndarray],
    confident: BlobNet,
    form: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    want, _ = eager(confident, rows["features"], rows["masks"])
    assert 0.6 <= want.max(axis=1).mean() <= 0.9
    compiled = form == "compiled"
    if compiled:
        monkeypatch.setenv("SHMZERO_CACHE", str(request.getfixturevalue("cache")))
    device = CpuNetDevice(confident, COMPILED_PRECISION if compiled else form, compiled, 4096)
    assert (device.compilation.callable is not None) == compiled
    got, _ = served(device, rows["features"], rows["masks"])
    assert np.abs(got - want).max() < 0.01 and np.abs(got - want).mean() < 1e-3


def test_fresh_network_follows_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = BlobNet(SMALL, seed=7).state_dict()
    torch.manual_seed(2)
    second = BlobNet(SMALL, seed=7).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["bids.weight"], BlobNet(SMALL, seed=8).state_dict()["bids.weight"])


def test_checkpoint_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    net = BlobNet(SMALL, seed=5)
    save_checkpoint(net, tmp_path / "net.safetensors")
    loaded = load_checkpoint(tmp_path / "net.safetensors")
    assert loaded.config == SMALL and os.listdir(tmp_path) == ["net.safetensors"]
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in net.state_dict().items())


def mangle(path: Path, how: str) -> None:
    whole = path.read_bytes()
    tensors = safetensors.torch.load(whole)
    metadata = {
        "format": "shmzero-net-1",
        "features": str(_core.FEATURE_VERSION),
        "net": json.dumps({"width": 32, "hidden": 64, "blocks": 2, "trunks": 1}),
    }
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
        return
    if how == "garbage":
        path.write_bytes(b"no checkpoint at all")
        return
    if how == "nan":
        tensors["value.bias"][0] = float("nan")
    if how == "shape":
        tensors["value.weight"] = torch.zeros(1, 31)
    if how == "version":
        metadata["features"] = "999"
    if how == "format":
        metadata["format"] = "other"
    if how == "config":
        metadata["net"] = json.dumps({"width": -1})
    path.write_bytes(safetensors.torch.save(tensors, metadata))


@pytest.mark.parametrize("how", ["truncated", "garbage", "nan", "shape", "version", "format", "config"])
def test_corrupt_checkpoint_is_refused_and_the_old_weights_stay(tmp_path: Path, how: str) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(BlobNet(SMALL, seed=1), path)
    mangle(path, how)
    device = CpuNetDevice(BlobNet(SMALL, seed=2), "fp32", False, 8)
    before = [t.clone() for t in device.weights]
    with pytest.raises(ConfigError, match="checkpoint"):
        device.swap(str(path))
    assert all(torch.equal(a, b) for a, b in zip(before, device.weights, strict=True))


def test_swap_to_a_network_of_other_sizes_is_refused(tmp_path: Path) -> None:
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="other sizes"):
        CpuNetDevice(BlobNet(SMALL), "fp32", False, 8).swap(str(tmp_path / "other.safetensors"))


class LateDevice:
    """Two buffers in flight around a CPU device: the twin of the CUDA device's order of events."""

    num_buffers = 2

    def __init__(self, inner: CpuNetDevice) -> None:
        self.inner = inner
        self.max_batch = inner.max_batch
        self.buffers = [new_staging(inner.max_batch) for _ in range(2)]
        self.pending: dict[int, int] = {}
        self.looks = 0

    def staging(self, buffer: int) -> Staging:
        return self.buffers[buffer]

    def launch(self, buffer: int, rows: int) -> None:
        assert buffer not in self.pending, "a buffer is launched again before it was waited for"
        self.pending[buffer] = rows

    def finished(self, buffer: int) -> bool:
        self.looks += 1
        return self.looks % 3 == 0

    def wait(self, buffer: int) -> None:
        rows, at = self.pending.pop(buffer), self.buffers[buffer]
        at.policies[:rows], at.values[:rows] = served(self.inner, at.features[:rows], at.masks[:rows])

    def swap(self, path: str) -> None:
        assert not self.pending, "weights are swapped under a batch"
        self.inner.swap(path)

    def poll(self) -> str | None:
        return None


def serve_under_load(
    memory: Any,
    devices: list[Any],
    rows: tuple[np.ndarray, np.ndarray],
    want: list[tuple[np.ndarray, np.ndarray]],
    folder: Path,
    atol: tuple[float, float],
    between: Any = lambda: True,
) -> None:
    """Four slots of one worker ask the same rows over and over while checkpoints folder/1, 2... are published, until
    every process has served the last for a while; each answer must be that of the version it carries.

    `between` is asked before each publication whether it may come.
    """  # fmt: skip
    last = len(want) - 1
    pairs = [socket.socketpair() for _ in devices]
    loops = [
        BatchLoop(_core.ServerPort(memory.segment, i, 1), device, ParentControl(pair[1].detach(), COMMANDS), 0, 1.0)
        for i, (device, pair) in enumerate(zip(devices, pairs, strict=True))
    ]
    threads = [threading.Thread(target=loop.run) for loop in loops]
    for thread in threads:
        thread.start()
    port = _core.WorkerPort(memory.segment, 0)
    seen: dict[int, list[int]] = {slot: [] for slot in range(4)}
    out: set[int] = set()
    published = 0
    while any(versions[-20:] != [last] * 20 for versions in seen.values()):
        if published < last and all(versions[-10:] == [published] * 10 for versions in seen.values()) and between():
            published += 1
            line = encode(TakeWeights(str(folder / f"{published}.safetensors"), published))
            for ours, _ in pairs:
                ours.sendall(line)
        for slot in range(4):
            if slot in out and not port.answered(slot):
                continue
            _, _, policies, values = _core.slot_views(memory.segment, 0, slot)
            if slot in out:
                version = port.version(slot)
                assert np.allclose(policies, want[version][0], rtol=0, atol=atol[0])
                assert np.allclose(values, want[version][1], rtol=0, atol=atol[1])
                seen[slot].append(version)
            assert port.begin(slot)
            states, words, _, _ = _core.slot_views(memory.segment, 0, slot)
            states[:], words[:, 0] = rows
            port.publish(slot, 8)
            out.add(slot)
        port.wait(15, 20.0)
    for ours, _ in pairs:
        ours.close()
    for thread in threads:
        thread.join()
    assert all(versions == sorted(versions) and set(versions) == set(range(last + 1)) for versions in seen.values())


@pytest.mark.parametrize("buffers", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_swapped_under_load_every_answer_is_of_the_version_it_carries(
    rows: dict[str, np.ndarray], tmp_path: Path, precision: str, buffers: int
) -> None:
    nets = [BlobNet(SMALL, seed=seed) for seed in range(6)]
    for version, net in enumerate(nets):
        save_checkpoint(net, tmp_path / f"{version}.safetensors")
    some = rows["features"][:8], rows["masks"][:8]
    want = [served(CpuNetDevice(net, precision, False, 8), *some) for net in nets]
    memory = create_private(1, 1, 4, 8)
    inner = CpuNetDevice(nets[0], precision, False, 16)
    serve_under_load(memory, [inner if buffers == 1 else LateDevice(inner)], some, want, tmp_path, (1e-5, 1e-5))
    memory.close()


def distinct_nets(number: int) -> list[BlobNet]:
    """Networks of COMPILED that differ by more than a rounding in every answer."""
    nets = [BlobNet(COMPILED, seed=seed) for seed in range(number)]
    with torch.no_grad():
        for version, net in enumerate(nets):
            net.value.bias.fill_(float(version))
            net.bids.weight.mul_(10)
            net.cards.weight.mul_(10)
    return nets


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("start", ["compiled", "eagerly"])
def test_weights_swapped_under_load_with_the_compiled_network_and_while_it_takes_over(
    rows: dict[str, np.ndarray],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: str,
    processes: int,
) -> None:
    """From `eagerly` on, the compiled form appears in the cache after two swaps, with requests in flight."""
    nets = distinct_nets(6)
    for version, net in enumerate(nets):
        save_checkpoint(net, tmp_path / f"{version}.safetensors")
    some = rows["features"][:8], rows["masks"][:8]
    want = [served(CpuNetDevice(net, COMPILED_PRECISION, False, 8), *some) for net in nets]
    folder = cache if start == "compiled" else tmp_path / "cache"
    monkeypatch.setenv("SHMZERO_CACHE", str(folder))
    monkeypatch.setattr(compilation, "LOOK_S", 0.0)
    monkeypatch.setattr(compilation, "start_compiler", lambda *arguments: None)
    devices = [CpuNetDevice(nets[0], COMPILED_PRECISION, True, 16) for _ in range(processes)]
    assert all((device.compilation.callable is not None) == (start == "compiled") for device in devices)
    swaps = iter(range(1, 6))

    def between() -> bool:
        """The package is there from the third publication on, which waits until all have taken it up."""
        if start == "eagerly" and folder.exists():
            return all(device.compilation.callable is not None for device in devices)
        if next(swaps) == 3 and start == "eagerly":
            copied(cache, tmp_path / "arriving").parent.replace(folder)
            return False
        return True

    memory = create_private(processes, 1, 4, 8)
    serve_under_load(memory, devices, some, want, tmp_path, (5e-3, 2e-2), between)
    memory.close()
    assert all(device.compilation.callable is not None for device in devices)


def test_compiled_network_serves_what_the_eager_one_does_also_after_a_swap(
    rows: dict[str, np.ndarray], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMZERO_CACHE", str(cache))
    nets = distinct_nets(2)
    save_checkpoint(nets[1], tmp_path / "next.safetensors")
    device = CpuNetDevice(nets[0], COMPILED_PRECISION, True, 16)
    assert device.compilation.callable and device.compilation.helper is None
    for net in nets:
        eager = CpuNetDevice(net, COMPILED_PRECISION, False, 16)
        for count in (1, 2, 12, 16):
            features, masks = rows["features"][:count], rows["masks"][:count]
            got, want = served(device, features, masks), served(eager, features, masks)
            assert np.abs(got[0] - want[0]).max() < 5e-3 and np.abs(got[1] - want[1]).max() < 2e-2
        device.swap(str(tmp_path / "next.safetensors"))


def test_compiled_network_that_cannot_be_loaded_is_served_eagerly_and_said(
    rows: dict[str, np.ndarray], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = copied(cache, tmp_path / "cache")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    monkeypatch.setenv("SHMZERO_CACHE", str(damaged.parent))
    net, some = BlobNet(COMPILED), (rows["features"][:8], rows["masks"][:8])
    eager = served(CpuNetDevice(net, COMPILED_PRECISION, False, 16), *some)

    def serves_eagerly(device: CpuNetDevice) -> bool:
        return all(np.array_equal(got, want) for got, want in zip(served(device, *some), eager, strict=True))

    device = CpuNetDevice(net, COMPILED_PRECISION, True, 16)
    assert (
        not device.compilation.is_pending
        and f"eagerly: {damaged} cannot be loaded (" in device.description
        and serves_eagerly(device)
    )

    monkeypatch.setattr(compilation, "LOOK_S", 0.0)
    damaged.rename(tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "start_compiler", lambda *arguments: None)
        device = CpuNetDevice(net, COMPILED_PRECISION, True, 16)
    assert device.compilation.is_pending and device.poll() is None
    (tmp_path / "kept").rename(damaged)
    said = device.poll() or ""
    assert (
        said.startswith(f"serves eagerly: {damaged} cannot be loaded")
        and not device.compilation.is_pending
        and serves_eagerly(device)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_device_two_stages_equal_the_eager_network(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    from shmzero.inference.cuda import CudaNetDevice

    nets = [BlobNet(SMALL, seed=seed) for seed in (1, 2)]
    save_checkpoint(nets[1], tmp_path / "next.safetensors")
    device = CudaNetDevice(nets[0], precision="fp32", compiled=False, max_batch=256)
    for net in nets:
        for buffer in (0, 1):
            staging = device.staging(buffer)
            staging.features[:100], staging.masks[:100] = rows["features"][:100], rows["masks"][:100]
            device.launch(buffer, 100)
        for buffer in (0, 1):
            device.wait(buffer)
            want = eager(net, rows["features"][:100], rows["masks"][:100])
            assert np.abs(device.staging(buffer).policies[:100] - want[0]).max() < 5e-3
        device.swap(str(tmp_path / "next.safetensors"))
