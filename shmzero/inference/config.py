"""Settings of inference: defaults and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from shmzero.errors import ConfigError
from shmzero.machine import check_cuda
from shmzero.settings import Settings, setting


@dataclass(frozen=True)
class Batches(Settings):
    """How a network is computed and how its batches are filled, in self-play and in a service."""

    title: ClassVar[str] = "inference"

    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", free=True)
    """Number format of the network: auto takes the fastest that the device has."""
    compile: bool = setting(True, free=True)
    """Serve a compiled network as soon as it is ready; worth it in runs of more than a few minutes."""
    # None, here and below: engine/plan.py decides. A service has defaults of its own, in service/config.py.
    max_batch: int | None = setting(None, low=1, high=2**20, free=True)
    """Rows of a batch at most."""
    timeout_ms: float = setting(2.0, low=0, high=10_000, free=True)
    """A batch waits no longer than this for further rows."""
    spin_us: float | None = setting(None, low=0, high=100_000, free=True)
    """Busy waiting before a process sleeps, in microseconds; worth it where a core is spare."""


@dataclass(frozen=True)
class Inference(Batches):
    """The inference processes of self-play."""

    device: str = setting("auto", free=True, usual=True)
    """Devices of the inference processes: auto, cpu, cpu*2 (two processes), cuda, cuda:0,cuda:1."""
    inference_threads: int | None = setting(None, low=1, high=1024, free=True)
    """Threads of each inference process on a CPU."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        self.devices()

    def devices(self) -> list[str]:
        """One entry an inference process, "cpu" or "cuda:N"; none where `device` is auto."""
        if self.device == "auto":
            return []
        found: list[str] = []
        for part in self.device.split(","):
            name, star, times = part.partition("*")
            kind, colon, index = name.partition(":")
            fits = (kind == "cpu" and not colon) or (kind == "cuda" and (not colon or index.isdecimal()))
            if not fits or (star and not (times.isdecimal() and 1 <= int(times) <= 64)):
                raise ConfigError(f"device is {self.device!r}; allowed: auto, cpu, cpu*2, cuda, cuda:0, cuda:0,cuda:1")
            found += ["cpu" if kind == "cpu" else f"cuda:{int(index or 0)}"] * (int(times) if star else 1)
        return found

    def check_devices(self) -> None:
        """Raises ConfigError where this machine does not have the devices."""
        check_cuda("device", self.device, self.devices())
