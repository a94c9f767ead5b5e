"""Whole engines, and engines that run side by side for a measurement, one at a time: the others are stopped meanwhile.

Starting an engine takes seconds, so a comparison starts all of them once and then takes turns. Read
next: selfplay.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.fleet import Fleet
from shmzero.engine.plan import resolve
from shmzero.inference.messages import DeviceSpec
from shmzero.machine import cores
from shmzero.nets.config import NETS
from tools.benchmarks.measure import Spread, interleaved

SETTLE_S = 1.0
"""After an engine goes on, before its figures count."""


def settings_of(given: argparse.Namespace, **changes: Any) -> SelfPlayConfig:
    """The run that a benchmark's options describe."""
    options: dict[str, Any] = {
        "preset": "medium",
        "device": "auto",
        "workers": None,
        "max_batch": None,
        "evaluator": "net",
        "net": "plan",
        "checkpoint": None,
    }
    chosen = {name: getattr(given, name, default) for name, default in options.items()}
    return SelfPlayConfig.of(**(chosen | {"stall_s": 86_400.0} | changes))


def device_spec(config: SelfPlayConfig, max_batch: int) -> DeviceSpec:
    """What a serving process of this run serves from, on one thread of a CPU."""
    return DeviceSpec(
        device="cpu",
        max_batch=max_batch,
        threads=1,
        evaluator=config.net.evaluator,
        precision=config.inference.precision,
        compile=config.inference.compile,
        checkpoint=str(config.net.checkpoint) if config.net.checkpoint else None,
        net=NETS[config.net.net],
        seed=config.seed,
    )


def device_text(devices: Sequence[str]) -> str:
    """Devices as --device takes them."""
    return f"cpu*{len(devices)}" if set(devices) == {"cpu"} else ",".join(devices)


@dataclass(frozen=True)
class Rates:
    """Of one stretch with all lanes busy."""

    rows_per_s: float
    """Distinct evaluations: rows that the inference processes answered."""
    mean_batch: float
    server_busy: float
    worker_busy: float
    inference_share: float
    """Of the cores' time, spent in the inference processes."""
    worker_share: float
    """The same in the workers."""


class Engine:
    """A fleet that never runs out of rounds. Use as a context manager; starts stopped."""

    def __init__(self, config: SelfPlayConfig, without: Sequence[str] = ()) -> None:
        """`without`: environment variables that its processes shall not see."""
        self.config = config
        self._stack = ExitStack()
        hidden = {name: os.environ.pop(name) for name in without if name in os.environ}
        try:
            self.fleet = self._stack.enter_context(Fleet(resolve(config), iter(range(10**9)), 10**6))
        finally:
            os.environ.update(hidden)
        self.rounds = 0

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.signal(signal.SIGCONT)
        self._stack.close()

    def signal(self, number: int) -> None:
        for kind in self.fleet.pids().values():
            for pid in kind:
                os.kill(pid, number)

    def run(self, seconds: float) -> None:
        """Play on for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.rounds += len(self.fleet.poll(0.05))

    def warm_up(self, seconds: float) -> Engine:
        """Until a round is finished, which fills the lanes, and then for so long. Leaves it stopped."""
        while not self.rounds:
            self.run(0.1)  # which raises what a child refuses
        self.run(seconds)
        self.signal(signal.SIGSTOP)
        return self

    def measure(self, seconds: float) -> Rates:
        """Go on, measure, stop again."""
        self.signal(signal.SIGCONT)
        self.run(SETTLE_S)
        before, spent_before, start = self.fleet.counters(), self._cpu_s(), time.monotonic()
        self.run(seconds)
        after, spent, wall = self.fleet.counters(), self._cpu_s(), time.monotonic() - start
        self.signal(signal.SIGSTOP)
        gain = {name: after[name] - before[name] for name in after}
        plan = self.fleet.plan
        return Rates(
            gain["rows"] / wall,
            gain["rows"] / max(1, gain["batches"]),
            gain["busy_ns"] / 1e9 / wall / len(plan.devices),
            gain["worker_busy_ns"] / 1e9 / wall / plan.workers,
            (spent["servers"] - spent_before["servers"]) / wall / cores(),
            (spent["workers"] - spent_before["workers"]) / wall / cores(),
        )

    def _cpu_s(self) -> dict[str, float]:
        """CPU time of the children so far, by kind."""
        return {kind: sum(map(cpu_s_of, pids)) for kind, pids in self.fleet.pids().items()}

    def rows_per_decision(self) -> float:
        """Distinct evaluations of a decision so far."""
        counters = self.fleet.counters()
        return counters["worker_rows"] / max(1, counters["decisions"])

    def private_mb(self) -> float:
        """Private memory of the largest worker."""
        return max(private_mb_of(pid) for pid in self.fleet.pids()["workers"])


def cpu_s_of(pid: int) -> float:
    """CPU time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def private_mb_of(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1000


def in_turns(
    given: argparse.Namespace,
    engines: Mapping[str, SelfPlayConfig],
    without: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Spread]:
    """Steady evaluations/s of several engines that take turns; `without` variables of the environment, by engine."""
    seconds = given.seconds or (3.0 if given.quick else 8.0)
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(Engine(config, (without or {}).get(name, ()))).warm_up(seconds)
            for name, config in engines.items()
        }

        def turn(name: str) -> float:
            return started[name].measure(seconds).rows_per_s

        return interleaved({name: partial(turn, name) for name in started}, given.repeats)


def engine_options(sub: argparse.ArgumentParser) -> None:
    """The options that `settings_of` reads."""
    sub.add_argument("--device", default="auto")
    sub.add_argument("--net", choices=sorted(NETS), default="plan")
    sub.add_argument("--checkpoint", type=Path, help="weights to serve instead of fresh ones")
    sub.add_argument("--evaluator", choices=["net", "hash", "uniform"], default="net")
    sub.add_argument("--max-batch", type=int)
