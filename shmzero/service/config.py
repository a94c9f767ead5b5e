"""Settings of a service: defaults and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.inference.config import Batches
from shmzero.machine import Machine, check_cuda
from shmzero.nets.config import NetSource
from shmzero.service.options import ServiceMemory, ServiceOptions, spin_us_or_default
from shmzero.settings import Settings, setting
from shmzero.shm.names import service_path
from shmzero.shm.sizes import Widths


@dataclass(frozen=True)
class Model(Settings):
    """What is served where it is not Blob's own network."""

    title: ClassVar[str] = "model"

    model: str | None = setting(None, usual=True)
    """module:factory; factory() returns a torch module, or a numpy function, that maps (states, masks) to
    (policies, values). A module is served itself, not a copy of it. Without it Blob's own network is served."""
    grad: bool = False
    """Let the model take gradients within a call."""
    check_finite: bool = True
    """Fail a request whose answer holds NaN or infinity; otherwise such answers are handed out."""
    state_dim: int = setting(_core.NUM_FEATURES, usual=True)
    """Width of a state."""
    action_dim: int = setting(_core.NUM_ACTIONS, usual=True)
    """Width of a mask and of a policy."""
    value_dim: int = setting(1, usual=True)
    """Width of a value."""
    wire: Literal["float32", "float16"] | None = None
    """How states travel. Without it float32, for Blob's own network float16, which loses nothing."""

    def widths(self) -> Widths:
        """Widths of the service's rows and answers, and how states travel."""
        wire = self.wire or ("float32" if self.model else "float16")
        return Widths(self.state_dim, self.action_dim, self.value_dim, wire)


@dataclass(frozen=True)
class ServeConfig(Settings):
    """A service. No setting is required: without a model it serves Blob's own network.

    `ServeConfig.of(name="mine", device="cpu")` makes one out of flat names.
    """

    title: ClassVar[str] = "service"
    old_names: ClassVar[Mapping[str, str]] = {"weights": "checkpoint"}

    name: str = setting("blob", usual=True)
    """The name that clients ask for."""
    model: Model = field(default=Model())
    net: NetSource = field(default=NetSource())
    batches: Batches = field(default=Batches(max_batch=1024))
    memory: ServiceMemory = field(default=ServiceMemory())
    device: str = setting("auto", usual=True)
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = setting(None, low=1, high=1024)
    """torch's threads on a CPU. Without it the cores less one."""
    stats: bool = setting(False, usual=True)
    """Show rows/s, batches, waiting times and clients, live."""
    json: bool = False
    """Print one JSON object at the end and nothing else on standard output."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        service_path(self.name)
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"device is {self.device!r}; allowed: auto, cpu, cuda, cuda:1")
        if self.batches.max_batch is None:
            raise ConfigError("max_batch is unset; allowed: a number of rows")

    def options(self) -> ServiceOptions:
        """How the model is served. Raises ConfigError for what cannot be."""
        batches, memory = self.batches, self.memory
        assert batches.max_batch is not None  # or it would have been refused
        return ServiceOptions(
            widths=self.model.widths(),
            slots=memory.slots,
            rows_per_slot=memory.rows_per_slot,
            max_batch=batches.max_batch,
            timeout_ms=batches.timeout_ms,
            spin_us=batches.spin_us,
            check_finite=self.model.check_finite,
        )

    def resolved(self, machine: Machine | None = None) -> ServeConfig:
        """The settings with nothing left open that a machine decides (default: this one)."""
        machine = machine or Machine.here()
        device = self.device
        if self.model.model is None:  # a user's own model may be on a device already
            auto = "cuda:0" if machine.has_cuda else "cpu"
            device = {"auto": auto, "cuda": "cuda:0"}.get(device, device)
        return self.but(
            wire=self.model.widths().wire,
            device=device,
            threads=self.threads or max(machine.cores - 1, 1),
            spin_us=spin_us_or_default(self.batches.spin_us),
        )

    def check_devices(self) -> None:
        """Raises ConfigError where this machine does not have the device."""
        check_cuda("device", self.device, [self.device])
