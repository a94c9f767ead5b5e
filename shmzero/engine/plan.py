"""What settings of self-play come to on a machine: processes, lanes, slots and rows.

Starts nothing. Read next: engine/fleet.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shmzero import _core
from shmzero.engine.config import SelfPlayConfig
from shmzero.errors import ConfigError
from shmzero.machine import Machine
from shmzero.mcts.config import SearchConfig

MOST_CPU_PROCESSES = 8
"""Inference processes and workers that are started at most without being asked for."""
LANE_SIMULATIONS = 1 << 22
"""How many simulations the lanes of a run have room for, unless their number is given: one to two GB."""


@dataclass(frozen=True)
class FleetPlan:
    """Self-play as it will run on one machine. Nothing is left open but `auto` of the precision, which torch knows."""

    asked: SelfPlayConfig
    """The settings as they were given."""
    config: SelfPlayConfig
    """The settings, in which what was None or auto is what the machine made of it; lanes follow from the rounds."""
    search: SearchConfig
    devices: tuple[str, ...]
    """One entry an inference process, "cpu" or "cuda:N"."""
    workers: int
    lanes: int
    """Rounds that a worker plays at once."""
    slots: int
    """Slots of each worker."""
    rows_per_lane: int
    """Rows that a lane asks for at most in one step."""
    max_batch: int
    threads: int
    """Threads of each inference process."""
    spin_us: float
    """Busy waiting before a process sleeps."""

    @property
    def rows_per_slot(self) -> int:
        """Rows of a request at most."""
        return -(-self.lanes // self.slots) * self.rows_per_lane

    def for_units(self, num_units: int) -> FleetPlan:
        """The same plan with no more lanes than `num_units` units need. Raises ConfigError for too many."""
        plan = replace(self, lanes=max(1, min(self.lanes, -(-num_units // self.workers))))
        if plan.rows_per_slot > _core.MAX_ROWS_PER_SLOT:
            raise ConfigError(
                f"lanes is {plan.lanes} with {plan.rows_per_lane} rows each, {plan.rows_per_slot} in a slot; "
                f"allowed: {_core.MAX_ROWS_PER_SLOT} rows in a slot"
            )
        return plan

    def with_checkpoint(self, path: Path | None) -> FleetPlan:
        """The same plan with the weights of another checkpoint."""
        return replace(self, asked=self.asked.but(checkpoint=path), config=self.config.but(checkpoint=path))

    def dump(self) -> dict[str, Any]:
        """The settings by flat name, as `--config` takes them. On a cluster each node has sizes of its own."""
        return (self.config if self.asked.processes.cluster is None else self.asked).flat()


def resolve(config: SelfPlayConfig, machine: Machine | None = None) -> FleetPlan:
    """What `config` comes to on a machine (default: this one). Raises ConfigError for sizes that do not go together.

    An inference process has one batch to compute, the workers another to prepare; on CUDA two are in flight.
    """
    machine = machine or Machine.here()
    devices = config.inference.devices() or auto_devices(config, machine)
    on_cuda = any(name != "cpu" for name in devices)
    max_batch = config.inference.max_batch or (8192 if on_cuda else 1024)
    # Many small slots fill a batch better than few large ones; beyond two workers a server (on CUDA: a
    # core each) more of them bring nothing.
    on_cores = max(len(devices), min(machine.cores - 1, MOST_CPU_PROCESSES))
    workers = config.processes.workers or (on_cores if on_cuda else 2 * len(devices))
    slots = config.processes.slots
    if workers * slots < len(devices):
        raise ConfigError(
            f"workers is {workers} with {slots} slots each and {len(devices)} inference processes; "
            f"allowed: at least {-(-len(devices) // slots)}"
        )
    search = config.search_config()
    rows_per_lane = search.to_core().rows_per_step(config.play_settings().most_players)
    batches = 3 if on_cuda else 2
    wanted = -(-batches * max_batch * len(devices) // (rows_per_lane * workers))
    wanted = min(wanted, LANE_SIMULATIONS // (workers * max(1, search.size())))
    threads = config.inference.inference_threads or (1 if on_cuda else max(1, machine.cores // len(devices)))
    spin_us = config.inference.spin_us
    if spin_us is None:
        spin_us = 50.0 if machine.cores > workers + len(devices) * threads else 0.0
    settled = config.but(
        rounds=None if config.length.games else config.length.units(),
        determinizations=search.determinizations,
        simulations=search.simulations,
        random_moves=search.noise_fraction,
        workers=workers,
        device=device_text(devices),
        inference_threads=threads,
        max_batch=max_batch,
        spin_us=spin_us,
    )
    return FleetPlan(
        asked=config,
        config=settled,
        search=search,
        devices=tuple(devices),
        workers=workers,
        lanes=config.processes.lanes or max(slots, wanted),
        slots=slots,
        rows_per_lane=rows_per_lane,
        max_batch=max_batch,
        threads=threads,
        spin_us=spin_us,
    )


def auto_devices(config: SelfPlayConfig, machine: Machine) -> list[str]:
    """The devices that `--device auto` stands for."""
    if config.net.evaluator != "net":
        return ["cpu"]
    return ["cuda:0"] if machine.has_cuda else ["cpu"] * min(machine.cores, MOST_CPU_PROCESSES)


def device_text(devices: list[str]) -> str:
    """Devices as `--device` takes them."""
    return f"cpu*{len(devices)}" if set(devices) == {"cpu"} else ",".join(devices)
