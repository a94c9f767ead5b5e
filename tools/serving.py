"""Serving devices alone, back to back on real rows: the roofline that a self-play run is held against.

`python tools/serving.py SPEC` is a child that bench.py commands over its standard input. The devices
are those of the inference process (shmzero/evaluators.py). Read next: bench.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shmzero import _core
from shmzero.errors import ConfigError, WorkerDied
from shmzero.inference.device import BatchDevice
from shmzero.inference.factory import make_device
from tools.measure import Result, ratio, real_rows

COMPILE_S = 900.0
"""Longest wait for the compile helper; what is not compiled by then is served eagerly."""


def ready_device(spec: dict[str, Any]) -> BatchDevice:
    """The device of an inference process's spec, compiled if it asks for that, real rows in its staging."""
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


WAYS = {"plain": rows_per_s, "padded": padded_rows_per_s, "unfolded": unfolded_rows_per_s}


def serving_costs(pool: Pool, repeats: int, seconds: float) -> list[Result]:
    """What batches of any size, and weights made ready once, bring to serving alone."""
    cases = {"serving 64 rows padded to a fixed batch": (64, "padded")}
    if set(pool.layout.devices) == {"cpu"}:
        cases["serving 512 rows, weights folded and cast for each batch"] = (512, "unfolded")
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, (rows, how) in cases.items():
            figures[name].append((pool.measure(rows, seconds, how), pool.measure(rows, seconds)))
    return [ratio(name, pairs) for name, pairs in figures.items()]


@dataclass(frozen=True)
class Layout:
    """Devices, one process each, and the threads of each process."""

    devices: tuple[str, ...]
    threads: int

    def __str__(self) -> str:
        return f"{len(self.devices)} x {self.threads} threads"


def layouts(devices: Sequence[str], num_cores: int) -> list[Layout]:
    """Ways to divide the machine: the devices as they are, or on a CPU 1, 2, 4 ... processes."""
    if any(name != "cpu" for name in devices):
        return [Layout(tuple(devices), 1)]
    numbers = {len(devices), num_cores} | {2**i for i in range(num_cores.bit_length()) if 2**i <= num_cores}
    return [Layout(("cpu",) * n, max(1, num_cores // n)) for n in sorted(numbers)]


class Pool:
    """The processes of a layout, idle between `measure` calls. Use as a context manager."""

    def __init__(self, layout: Layout, spec: dict[str, Any]) -> None:
        """Starts them and waits until they are ready to serve. Raises ConfigError, WorkerDied."""
        self.layout = layout
        environment = os.environ | {"OMP_NUM_THREADS": str(layout.threads), "MKL_NUM_THREADS": str(layout.threads)}
        self._children = [
            subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    json.dumps(spec | {"device": device, "threads": layout.threads, "parent_pid": os.getpid()}),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,  # a Ctrl-C is the parent's alone
            )
            for device in layout.devices
        ]
        try:
            for child in self._children:
                self._read(child)
        except BaseException:
            self.close()
            raise

    def measure(self, rows: int, seconds: float, how: str = "plain") -> float:
        """Rows/s of all processes together, in batches of `rows`, in one of WAYS."""
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(f"{rows} {seconds} {how}\n")
            child.stdin.flush()
        return float(sum(self._read(child)["rows_per_s"] for child in self._children))

    def _read(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise WorkerDied(f"serving process of {self.layout} ended with status {child.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.communicate()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def main(spec: dict[str, Any]) -> None:
    """The child: says what it has, then answers lines of rows and seconds until its input ends."""
    _core.die_with_parent(spec["parent_pid"])
    try:
        device = ready_device(spec)
    except ConfigError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    rows_per_s(device, device.max_batch, 0.2)
    print(json.dumps({"max_batch": device.max_batch}), flush=True)
    for line in sys.stdin:
        rows, seconds, how = line.split()
        rate = WAYS[how](device, int(rows), float(seconds))
        print(json.dumps({"rows_per_s": rate}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
