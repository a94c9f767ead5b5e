"""How many processes, lanes, slots and rows a run of self-play has, out of its settings and this machine.

Starts nothing. Read next: engine/fleet.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmzero import _core
from shmzero.engine.config import SelfPlayConfig
from shmzero.errors import ConfigError
from shmzero.machine import cores

LANE_SIMULATIONS = 1 << 22
"""How many simulations the lanes of a run have room for, unless their number is given: one to two GB."""


@dataclass(frozen=True)
class FleetPlan:
    """How many processes, lanes, slots and rows a run has, resolved from settings and machine."""

    devices: list[str]
    workers: int
    lanes: int
    slots: int
    rows_per_slot: int
    max_batch: int
    threads: int
    spin_us: float


def plan_fleet(config: SelfPlayConfig, num_units: int) -> FleetPlan:
    """Sizes for `num_units` units.

    A server has one batch to compute, the workers another to prepare; on CUDA two are in flight.
    """
    devices = config.devices()
    on_cuda = any(name != "cpu" for name in devices)
    max_batch = config.max_batch or (8192 if on_cuda else 1024)
    # Many small slots fill a batch better than few large ones; beyond two workers a server (on CUDA: a
    # core each) more of them bring nothing.
    workers = config.workers or (max(len(devices), min(cores() - 1, 8)) if on_cuda else 2 * len(devices))
    if workers * config.slots < len(devices):
        raise ConfigError(
            f"workers is {workers} with {config.slots} slots each and {len(devices)} inference processes; "
            f"allowed: at least {-(-len(devices) // config.slots)}"
        )
    search = config.search().to_core()
    rows_per_lane = search.rows_per_step(config.play_settings().most_players)
    batches = 3 if on_cuda else 2
    wanted = -(-batches * max_batch * len(devices) // (rows_per_lane * workers))
    wanted = min(wanted, LANE_SIMULATIONS // (workers * max(1, config.search().size())))
    lanes = config.lanes or max(config.slots, wanted)
    lanes = max(1, min(lanes, -(-num_units // workers)))
    rows_per_slot = -(-lanes // config.slots) * rows_per_lane
    if rows_per_slot > _core.MAX_ROWS_PER_SLOT:
        raise ConfigError(
            f"lanes is {lanes} with {rows_per_lane} rows each, {rows_per_slot} in a slot; "
            f"allowed: {_core.MAX_ROWS_PER_SLOT} rows in a slot"
        )
    threads = config.inference_threads or (1 if on_cuda else max(1, cores() // len(devices)))
    spare = cores() - workers - len(devices) * threads
    return FleetPlan(
        devices=devices,
        workers=workers,
        lanes=lanes,
        slots=config.slots,
        rows_per_slot=rows_per_slot,
        max_batch=max_batch,
        threads=threads,
        spin_us=(50.0 if spare > 0 else 0.0) if config.spin_us is None else config.spin_us,
    )
