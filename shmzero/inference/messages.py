"""What an inference process and its parent say to each other.

Commands: engine/inference_pool.py sends them, loop.py acts on them.
Events: process.py and loop.py send them, engine/inference_pool.py acts on them. How to add one is in CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shmzero.nets.config import NETS, NetConfig
from shmzero.processes.messages import Kinds, Message


@dataclass(frozen=True)
class DeviceSpec:
    """What batches are to be computed on and by, in words that can be sent."""

    device: str
    """cpu, or cuda:0 and so on"""
    max_batch: int
    threads: int
    """Threads on a CPU."""
    evaluator: str = "net"
    """The network, or the stand-ins hash and uniform."""
    precision: str = "auto"
    compile: bool = False
    checkpoint: str | None = None
    """Weights; without them the network is initialised from `seed` in the sizes `net`."""
    net: NetConfig = field(default_factory=lambda: NETS["plan"])
    seed: int = 0
    searched: bool | None = None
    """Whether a search reads the values: if not they are left out, if so a network of whole games is refused. None:
    anything may be asked."""
    other: str | None = None
    """The checkpoint of a second network, which answers the rows whose mask has bit 63 set."""


@dataclass(frozen=True)
class InferenceSpec(Message):
    """How the process is to be started."""

    segment_fd: int
    control_fd: int
    server: int
    epoch: int
    device: DeviceSpec
    version: int
    """The version of the weights that it starts with."""
    timeout_ms: float
    spin_us: float


# --- commands -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TakeWeights(Message):
    """Serve these weights from the next batch on."""

    weights: Any
    """The path of a checkpoint; within one process whatever the device takes."""
    version: int


@dataclass(frozen=True)
class TakeOther(Message):
    """Take this checkpoint for the second network from the next batch on."""

    checkpoint: str


Command = TakeWeights | TakeOther
COMMANDS: Kinds[Command] = Kinds(TakeWeights, TakeOther)


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceRefused(Message):
    """The device of the spec cannot be had: the process ends."""

    message: str


@dataclass(frozen=True)
class Ready(Message):
    """The process serves."""

    description: str


@dataclass(frozen=True)
class WeightsTaken(Message):
    """The weights of this version are served."""

    version: int


@dataclass(frozen=True)
class WeightsRefused(Message):
    """The weights of this version cannot be served; those before stay."""

    version: int
    message: str


@dataclass(frozen=True)
class OtherRefused(Message):
    """A checkpoint cannot be the second network; the one before stays."""

    checkpoint: str
    message: str


@dataclass(frozen=True)
class NetworkCompiled(Message):
    """The network is served in its compiled form from now on, or will never be; the message says which."""

    message: str


LoopEvent = WeightsTaken | WeightsRefused | OtherRefused | NetworkCompiled
"""What the batch loop tells."""
Event = DeviceRefused | Ready | LoopEvent
EVENTS: Kinds[Event] = Kinds(DeviceRefused, Ready, WeightsTaken, WeightsRefused, OtherRefused, NetworkCompiled)
