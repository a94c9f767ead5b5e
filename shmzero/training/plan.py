"""What settings of training come to on a machine: the plan of self-play in each stage, and the learner's.

Starts nothing. Read next: training/run.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.plan import FleetPlan, resolve
from shmzero.learner.config import LearnerConfig
from shmzero.machine import Machine
from shmzero.training.config import TrainConfig

CPU_LANES, CUDA_LANES = 512, 2048
"""Rounds that a worker plays at once without a search: the fewer, the newer the weights that play them."""

ENDLESS = 10**12
"""Units of a run that ends by its time."""


@dataclass(frozen=True)
class TrainPlan:
    """A training run as it will run on one machine."""

    config: TrainConfig
    """The settings, in which what was None or auto is what the machine made of it, where all stages have the same."""
    stages: tuple[FleetPlan, ...]
    """Self-play in each stage."""
    learner: LearnerConfig

    def dump(self) -> dict[str, Any]:
        """The settings by flat name, as `--config` takes them."""
        return self.config.flat()


def resolve_training(config: TrainConfig, machine: Machine | None = None) -> TrainPlan:
    """What `config` comes to on a machine (default: this one). Raises ConfigError for sizes that do not go together."""
    machine = machine or Machine.here()
    stages = tuple(_stage(config, stage, machine) for stage in range(len(config.search.stages())))
    sizes = [
        {"lanes": plan.lanes}
        | {name: plan.dump()[name] for name in ("device", "inference_threads", "workers", "max_batch", "spin_us")}
        for plan in stages
    ]
    is_here = config.processes.cluster is None  # or each node has sizes of its own
    same = {name: value for name, value in sizes[0].items() if is_here and all(size[name] == value for size in sizes)}
    learner = ("cuda:0" if machine.has_cuda else "cpu") if config.learner.learner == "auto" else config.learner.learner
    settled = config.but(learner=learner, **same)
    return TrainPlan(settled, stages, settled.learner_config())


def plays_on_cuda(play: SelfPlayConfig, machine: Machine) -> bool:
    """Whether self-play of these settings runs on CUDA, as far as this machine can tell."""
    asked = play.inference.device
    return (machine.has_cuda and play.processes.cluster is None) if asked == "auto" else asked.startswith("cuda")


def _stage(config: TrainConfig, stage: int, machine: Machine) -> FleetPlan:
    """Self-play in a stage. A policy alone costs less than what it is trained by: one process will do."""
    play = config.self_play(stage)
    if play.search.simulations == 0:
        if play.inference.device == "auto" and not machine.has_cuda and play.processes.cluster is None:
            play = play.but(device="cpu")
        if play.processes.lanes is None:
            play = play.but(lanes=CUDA_LANES if plays_on_cuda(play, machine) else CPU_LANES)
    return resolve(play, machine).for_units(ENDLESS)
