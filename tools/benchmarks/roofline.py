"""Processes that only serve: the roofline that a self-play run is held against.

`python -m tools.benchmarks.roofline SPEC` is one of them, which a benchmark commands over its standard input.
Read next: serving.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from shmzero import _core
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.plan import resolve
from shmzero.errors import ConfigError, WorkerDied
from shmzero.inference.messages import DeviceSpec
from shmzero.machine import cores
from shmzero.processes.messages import Kinds, Message, encode
from tools.benchmarks.engines import device_spec
from tools.benchmarks.measure import Result, interleaved, ratio
from tools.benchmarks.serving import padded_rows_per_s, ready_device, rows_per_s, unfolded_rows_per_s

WAYS = {"plain": rows_per_s, "padded": padded_rows_per_s, "unfolded": unfolded_rows_per_s}


def serving_costs(pool: Pool, repeats: int, seconds: float) -> list[Result]:
    """What batches of any size, and weights made ready once, bring to serving alone."""
    cases = {"serving 64 rows padded to a fixed batch": (64, "padded")}
    if set(pool.layout.devices) == {"cpu"}:
        cases["serving 512 rows, weights folded and cast for each batch"] = (512, "unfolded")
    results = []
    for name, (rows, how) in cases.items():
        measured = interleaved(
            {"so": partial(pool.measure, rows, seconds, how), "plain": partial(pool.measure, rows, seconds)}, repeats
        )
        results.append(ratio(name, measured["so"], measured["plain"]))
    return results


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


@dataclass(frozen=True)
class ServingSpec(Message):
    """How a serving process is to be started."""

    parent_pid: int
    device: DeviceSpec


class Pool:
    """The processes of a layout, idle between `measure` calls. Use as a context manager."""

    def __init__(self, layout: Layout, spec: DeviceSpec) -> None:
        """Starts them and waits until they are ready to serve. Raises ConfigError, WorkerDied."""
        self.layout = layout
        environment = os.environ | {"OMP_NUM_THREADS": str(layout.threads), "MKL_NUM_THREADS": str(layout.threads)}
        self._children = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tools.benchmarks.roofline",
                    encode(ServingSpec(os.getpid(), replace(spec, device=device, threads=layout.threads))).decode(),
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


class Roofline:
    """The best that processes x threads x batch sizes reach on this machine, same network and serving code."""

    def __init__(self, config: SelfPlayConfig, max_batch: int, seconds: float) -> None:
        """Starts a pool of each layout, finds the best of layouts and batch sizes, keeps that one."""
        cuda = any(name != "cpu" for name in resolve(config).devices)
        sizes = (max_batch // 2, max_batch) if cuda else (256, 512, 1024, 2048)
        spec = device_spec(config, sizes[-1])
        best: tuple[float, Pool | None, int] = (0.0, None, 0)
        self.tried: dict[str, float] = {}
        self._pool: Pool | None = None
        for layout in layouts(resolve(config).devices, cores()):
            pool = Pool(layout, spec)
            for rows in sizes:
                rate = pool.measure(rows, seconds)
                self.tried[f"{layout}, {rows} rows"] = rate
                if rate > best[0]:
                    best = (rate, pool, rows)
            if best[1] is not pool:
                pool.close()
            elif self._pool is not None:
                self._pool.close()
            self._pool = best[1]
        self.rows = best[2]

    def measure(self, seconds: float) -> float:
        """Rows/s, back to back."""
        assert self._pool is not None
        return self._pool.measure(self.rows, seconds)

    def name(self) -> str:
        assert self._pool is not None
        return f"{self._pool.layout}, {self.rows} rows"

    def close(self) -> None:
        assert self._pool is not None
        self._pool.close()


def main(spec: ServingSpec) -> None:
    """The child: says what it has, then answers lines of rows and seconds until its input ends."""
    _core.die_with_parent(spec.parent_pid)
    try:
        device = ready_device(spec.device)
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
    main(Kinds(ServingSpec).decode(sys.argv[1].encode()))
