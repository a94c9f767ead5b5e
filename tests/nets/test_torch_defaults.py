"""Our tensors are what they are whatever default dtype and device another library has left on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmzero import BatchedEvaluator, play_rounds
from shmzero.inference.cpu import CpuNetDevice
from shmzero.learner.algorithm import METRICS, Learner
from shmzero.learner.buffer import ReplayBuffer
from shmzero.learner.config import LearnerConfig
from shmzero.learner.critic import Critic
from shmzero.learner.losses import action_weights
from shmzero.learner.schedule import Schedule
from shmzero.learner.state import load_state, save_state
from shmzero.matches.exploit import OnDevice
from shmzero.mcts.config import SearchConfig
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import load_checkpoint, save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.nets.evaluator import NetEvaluator
from shmzero.nets.precision import bf16_is_faster
from tests.support.service_programs import make_module, rows
from tests.support.services import WIDTHS

SMALL = NetConfig(width=16, hidden=16, blocks=1)


@contextmanager
def default(name: str) -> Iterator[None]:
    """With torch's default dtype or device changed."""
    if name == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


DEFAULTS = pytest.mark.parametrize("changed", ["float64", "float16", "meta"])


@DEFAULTS
def test_networks_and_checkpoints_do_not_follow_torchs_defaults(changed: str, tmp_path: Path) -> None:
    plain = BlobNet(SMALL, seed=3), Critic(SMALL, seed=3)
    with default(changed):
        net = BlobNet(SMALL, seed=3)
        save_checkpoint(net, tmp_path / "net.safetensors")
        nets = net, Critic(SMALL, seed=3), load_checkpoint(tmp_path / "net.safetensors")
    for made, right in zip(nets, (*plain, plain[0]), strict=True):
        for name, tensor in right.state_dict().items():
            found = made.state_dict()[name]
            assert torch.equal(found, tensor) and found.dtype == tensor.dtype, name


@DEFAULTS
def test_evaluators_and_devices_do_not_follow_torchs_defaults(changed: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    states, masks = rng.random((20, 256), np.float32), rng.random((20, 52)) < 0.6

    def answers() -> list[Any]:
        net = BlobNet(SMALL, seed=3)
        device = CpuNetDevice(net, "fp32", False, 20)
        device.staging(0).features[:], device.staging(0).masks[:] = states, 15
        device.launch(0, 20)
        found = [device.staging(0).policies, device.staging(0).values]
        return [
            *NetEvaluator(net).evaluate_many(states, masks),
            *OnDevice(net, "cpu").evaluate_many(states, masks),
            *found,
        ]

    right = answers()
    bf16_is_faster.cache_clear()
    with default(changed):
        bf16_is_faster()
        for found, wanted in zip(answers(), right, strict=True):
            assert found.dtype == np.float32 and np.array_equal(found, wanted)


@DEFAULTS
@pytest.mark.parametrize("targets", ["critic", "visits"])
def test_learner_does_not_follow_torchs_defaults(changed: str, targets: str, tmp_path: Path) -> None:
    records = play_rounds(
        HashEvaluator(), 200, SearchConfig(determinizations=1, simulations=4 if targets == "visits" else 0)
    )
    more: dict[str, Any] = {"redeals": 3, "neurd_share": 0.2} if targets == "critic" else {"searches": True}
    config = LearnerConfig(
        net="quick", targets=targets, batch=64, buffer=4096, importance_cap=5, tricks_weight=0.1, autocast="off", **more
    )

    def steps() -> list[torch.Tensor]:
        learner, buffer = Learner(config, "cpu"), ReplayBuffer(config.buffer, 3)
        buffer.add(records)
        learner.measure_scale(buffer)
        found = [learner.step(learner.draw(buffer), Schedule.at(config, 0.5)) for _ in range(3)]
        save_state(learner, tmp_path / "state", {})
        load_state(learner, tmp_path / "state")
        found.append(learner.step(learner.draw(buffer), Schedule.at(config, 0.5)))
        weights = action_weights(learner.draw(buffer), 0.1, 5.0) if targets == "critic" else torch.ones(1, device="cpu")
        return [*found, weights.float(), *learner.ema.state_dict().values()]  # type: ignore[list-item]

    right = steps()
    with default(changed):
        found = steps()
    assert len(right[0]) == len(METRICS)
    for one, wanted in zip(found, right, strict=True):
        assert one.dtype == wanted.dtype and torch.allclose(one, wanted, rtol=1e-5, atol=1e-7)


@DEFAULTS
def test_service_of_a_module_does_not_follow_torchs_defaults(changed: str) -> None:
    """Nor does the module in its calls, which are made in other threads than the one that changed the device."""
    modules = [make_module(), make_module()]
    for parameter in modules[1].parameters():
        torch.nn.init.normal_(parameter)
    states, masks = rows(np.random.default_rng(1), 10)
    with torch.no_grad():
        wanted = [
            [part.numpy() for part in module(torch.from_numpy(states), torch.from_numpy(masks))] for module in modules
        ]
    for module in modules:
        module.register_forward_hook(lambda _, given, found: (found[0] + torch.zeros(7, dtype=torch.float32), found[1]))
    with default(changed), BatchedEvaluator(modules[0], *WIDTHS, device="cpu") as served:
        for answers in wanted:
            for found, right in zip(served.evaluate_many(states, masks), answers, strict=True):
                assert found.dtype == np.float32 and np.allclose(found, right, atol=1e-6)
            served.swap(modules[1])
