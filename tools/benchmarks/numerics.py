"""Benchmark `numerics`: how far each number format is from float32, on a network that is sure of itself."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from shmzero import SearchConfig, _core, play_rounds
from shmzero.game.masks import masks_of
from shmzero.inference.device import BatchDevice
from shmzero.machine import cores
from shmzero.nets.config import NETS
from shmzero.nets.evaluator import NetEvaluator
from tools.benchmarks.measure import Result
from tools.benchmarks.options import quick_flag
from tools.benchmarks.serving import device_name, precisions, serving_device

ROWS = 512


def answers(device: BatchDevice, features: Any, masks: Any) -> Any:
    """Policies [B, 52] of rows of any number."""
    parts = []
    for at in range(0, len(masks), device.max_batch):
        count = min(device.max_batch, len(masks) - at)
        staging = device.staging(0)
        staging.features[:count] = features[at : at + count]
        staging.masks[:count] = masks[at : at + count]
        device.launch(0, count)
        device.wait(0)
        parts.append(staging.policies[:count].copy())
    return np.concatenate(parts)


def measure(given: argparse.Namespace) -> list[Result]:
    """Action probabilities of each serving mode against fp32 eager, on a network fitted to be confident."""
    import torch

    from shmzero.nets.checkpoint import load_checkpoint, save_checkpoint
    from tools.benchmarks.fitted_net import fitted_net

    device = device_name(given)
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        path = given.checkpoint or Path(folder) / "fitted.safetensors"
        if not given.checkpoint:
            # Soft targets: on the best action alone the network would end at 0 and 1, where nothing differs.
            fitted = fitted_net(NETS[given.net], given.steps, rounds=400, lr=5e-4, c_puct=0.1, sharpness=3.0)
            save_checkpoint(fitted, path)
        net = load_checkpoint(path)
        # Rounds that the network itself plays: what it is asked when it serves.
        rounds = play_rounds(NetEvaluator(net), 20, SearchConfig(determinizations=2, simulations=20), seed=77)
        rows = _core.replay(rounds)
        wide = masks_of(rows["masks"])
        reference, _ = NetEvaluator(net).evaluate_many(rows["features"].astype(np.float32), wide)
        best = reference.max(axis=1)
        results = [
            Result("rounds", float(len(rounds)), "", ">= 10"),
            Result("positions", float(len(wide))),
            Result("mean top probability", float(best.mean()), "", ">= 0.6"),
            Result("positions with a top probability above 0.99", float((best > 0.99).mean()), "", "<= 0.2"),
        ]
        for precision in dict.fromkeys([*precisions(device), "fp16"]):
            for compiled in (False, True) if given.compile else (False,):
                if compiled and given.quick and precision not in precisions(device):
                    continue  # half a minute of compilation for what nothing serves here
                served = serving_device(given, precision, compiled, ROWS, path)
                kind = f"{precision} {'compiled' if compiled else 'eager'}"
                if compiled and getattr(served, "compiled", None) is None:
                    results.append(Result(kind, "could not be compiled"))
                    continue
                difference = np.abs(answers(served, rows["features"], rows["masks"]) - reference)[wide]
                results += [
                    Result(f"{kind}: largest difference", float(difference.max()), "", "< 0.01"),
                    Result(f"{kind}: p99.9", float(np.quantile(difference, 0.999))),
                    Result(f"{kind}: mean", float(difference.mean())),
                ]
    return results


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda:N (default auto: CUDA where there is one)")
    sub.add_argument("--net", choices=sorted(NETS), default="plan")
    sub.add_argument("--no-compile", action="store_false", dest="compile", help="eager only")
    sub.add_argument("--checkpoint", type=Path, help="a trained network, instead of one fitted here")
    sub.add_argument("--steps", type=int, default=300, help="of that fit (default 300)")
