"""Settings of a service: defaults and what is allowed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.machine import check_cuda
from shmzero.nets.config import NetName
from shmzero.service.options import SERVICE_LIMITS, ServiceOptions, check_service
from shmzero.settings import check_whole
from shmzero.shm.names import service_path
from shmzero.shm.sizes import Widths


@dataclass(frozen=True)
class ServeConfig:
    """A service. No setting is required: without --model it serves Blob's own network."""

    name: str = "blob"
    """The name that clients ask for."""
    model: str | None = None
    """module:factory; factory() returns a torch module, or a numpy function, that maps (states, masks) to
    (policies, values). A module is served itself, not a copy of it."""
    grad: bool = False
    """Let the model take gradients within a call."""
    check_finite: bool = True
    """Fail a request whose answer holds NaN or infinity; otherwise such answers are handed out."""
    net: NetName = "plan"
    """Sizes of Blob's own network where it is fresh."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of Blob's own network."""
    compile: bool = True
    """Serve Blob's own network compiled as soon as it is ready."""
    state_dim: int = _core.NUM_FEATURES
    """Width of a state."""
    action_dim: int = _core.NUM_ACTIONS
    """Width of a mask and of a policy."""
    value_dim: int = 1
    """Width of a value."""
    wire: Literal["float32", "float16"] | None = None
    """How states travel (default: float32; float16 for Blob's own network, which loses nothing)."""
    weights: Path | None = None
    """Weights of the model (.safetensors; a checkpoint for Blob's own network)."""
    follow: bool = False
    """Take up the weights file's new content whenever it is replaced."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """torch's threads on a CPU (default: the cores less one)."""
    max_batch: int = 1024
    """Rows of a batch at most."""
    timeout_ms: float = 2.0
    """A batch waits no longer than this for further rows."""
    slots: int = 128
    """Requests at once, over all clients."""
    rows_per_slot: int = 128
    """Rows of a request; larger ones are split."""
    spin_us: float | None = None
    """How long the server spins at most before it sleeps (default: 50 where there is more than one core)."""
    stats: bool = False
    """Show rows/s, batches, waiting times and clients, live."""
    json: bool = False
    """Print one JSON object at the end and nothing else on standard output."""

    def widths(self) -> Widths:
        """Widths of the service's rows and answers, and how states travel."""
        wire = self.wire or ("float32" if self.model else "float16")
        return Widths(self.state_dim, self.action_dim, self.value_dim, wire)

    def options(self) -> ServiceOptions:
        """How the model is served. Raises ConfigError for what cannot be."""
        return ServiceOptions(
            self.widths(), self.slots, self.rows_per_slot, self.max_batch, self.timeout_ms, self.spin_us,
            self.check_finite,
        )  # fmt: skip

    def check(self) -> None:
        """Raises ConfigError for a setting that cannot be."""
        service_path(self.name)
        if self.threads is not None:
            check_whole("--threads", self.threads, 1, 1024)
        for name in SERVICE_LIMITS:
            check_service(name, getattr(self, name), f"--{name.replace('_', '-')}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"--device is {self.device!r}; allowed: auto, cpu, cuda, cuda:1")
        check_cuda("--device", self.device, [self.device])
        if self.follow and self.weights is None:
            raise ConfigError("--follow needs --weights FILE, the file to follow")
