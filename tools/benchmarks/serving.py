"""Serving devices alone, back to back on real rows.

The devices are those of the inference process (shmzero/inference/). Read next: roofline.py.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from shmzero.engine.plan import resolve
from shmzero.inference.device import BatchDevice
from shmzero.inference.factory import make_device
from shmzero.inference.messages import DeviceSpec
from shmzero.machine import cores
from tools.benchmarks.engines import device_spec, settings_of
from tools.benchmarks.measure import real_rows

COMPILE_S = 900.0
"""Longest wait for the compile helper; what is not compiled by then is served eagerly."""


def ready_device(spec: DeviceSpec) -> BatchDevice:
    """The device of a spec, compiled if it asks for that, real rows in its staging."""
    device = make_device(spec)
    give_up = time.monotonic() + COMPILE_S
    while getattr(device, "compiling", False) and time.monotonic() < give_up:
        device.poll()
        time.sleep(0.2)
    features, masks = real_rows(device.max_batch)
    for buffer in range(device.num_buffers):
        device.staging(buffer).features[:] = features
        device.staging(buffer).masks[:] = masks
    return device


def rows_per_s(device: BatchDevice, rows: int, seconds: float) -> float:
    """Batches of `rows` rows without a pause, as many in flight as the device takes."""
    in_flight: deque[int] = deque()
    buffer = done = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or in_flight:
        if len(in_flight) == device.num_buffers or time.perf_counter() - start >= seconds:
            device.wait(in_flight.popleft())
            done += rows
        if time.perf_counter() - start < seconds:
            device.launch(buffer, rows)
            in_flight.append(buffer)
            buffer = (buffer + 1) % device.num_buffers
    return done / (time.perf_counter() - start)


def padded_rows_per_s(device: BatchDevice, rows: int, seconds: float) -> float:
    """As `rows_per_s`, each batch filled up to `max_batch`: what one callable of a fixed size would cost."""
    return rows_per_s(device, device.max_batch, seconds) * rows / device.max_batch


def unfolded_rows_per_s(device: BatchDevice, rows: int, seconds: float) -> float:
    """As `rows_per_s`, weights folded and cast again for each batch (on a CPU)."""
    from shmzero.inference.cpu import CpuNetDevice
    from shmzero.nets.blob_net import BlobNet

    assert isinstance(device, CpuNetDevice)
    net = BlobNet(device.inference_net.config)
    done = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        device.weights = device.inference_net.weights(net, device.device)
        device.launch(0, rows)
        done += rows
    return done / (time.perf_counter() - start)


def device_name(given: argparse.Namespace) -> str:
    """The device, or the first of several; `auto` is what self-play takes."""
    return str(resolve(settings_of(given)).devices[0])


def precisions(device: str) -> list[str]:
    """What the device multiplies in hardware: fp32 is TF32 on CUDA."""
    from shmzero.nets.precision import cpu_has_bf16

    if device != "cpu":
        return ["fp32", "bf16", "fp16"]
    return ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]


def serving_device(
    given: argparse.Namespace, precision: str, compiled: bool, max_batch: int, checkpoint: Path | None = None
) -> BatchDevice:
    """What an inference process of these settings serves from, real rows in its staging."""
    config = settings_of(given, precision=precision, compile=compiled, checkpoint=checkpoint)
    threads = 1 if given.name == "inference" else cores()
    spec = device_spec(config, max_batch)
    return ready_device(replace(spec, device=device_name(given), threads=threads))
