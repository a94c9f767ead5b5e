"""How a model is served: what a server, an evaluator and the command `serve` are given alike, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from shmzero import _core
from shmzero.inference.config import Batches
from shmzero.machine import cores
from shmzero.settings import Settings, check_choice, check_number, check_whole, setting
from shmzero.shm.sizes import SegmentSizes, Widths


@dataclass(frozen=True)
class ServiceMemory(Settings):
    """The requests that fit into a service's memory."""

    title: ClassVar[str] = "service"

    slots: int = setting(128, low=1, high=_core.MAX_WORKERS)
    """Requests at once, over all clients."""
    rows_per_slot: int = setting(128, low=1, high=2**20)
    """Rows of a request; larger ones are split."""


SERVICE_LIMITS: dict[str, tuple[float, float]] = {
    one.name: (one.metadata["low"], one.metadata["high"])
    for kind in (Batches, ServiceMemory)
    for one in fields(kind)
    if one.metadata.get("low") is not None
}
"""The least and the most that each argument of a service may be; times may be fractions, and spin_us None."""
MOST_WIDTH = 2**20
"""The most that a width of a row or of an answer may be."""


def check_service(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is allowed for an argument of SERVICE_LIMITS."""
    low, high = SERVICE_LIMITS[name]
    if name not in ("timeout_ms", "spin_us"):
        check_whole(name, value, int(low), int(high))
    elif value is not None or name != "spin_us":
        check_number(name, value, low, high)


def spin_us_or_default(spin_us: float | None) -> float:
    """How long to spin before sleeping: 50 us where there is more than one core, unless it is given.

    Raises ConfigError where the given one cannot be.
    """
    check_service("spin_us", spin_us)
    if spin_us is not None:
        return spin_us
    return 50.0 if cores() > 1 else 0.0


@dataclass(frozen=True)
class ServiceOptions:
    """What is served, in which slots, and when a batch goes. Raises ConfigError for what cannot be."""

    widths: Widths
    slots: int
    """How many requests there may be at once, over all clients. Each is in a block of its own."""
    rows_per_slot: int
    """The most rows of a request; larger ones are split."""
    max_batch: int
    """The most rows of a batch."""
    timeout_ms: float
    """How long a batch waits for further rows."""
    spin_us: float | None
    """How long the server spins at most before it sleeps; None: see `spin_us_or_default`."""
    check_finite: bool
    """Whether a request whose answer holds NaN or infinity fails."""

    def __post_init__(self) -> None:
        for name in SERVICE_LIMITS:
            check_service(name, getattr(self, name))
        for name in ("state_dim", "action_dim", "value_dim"):
            check_whole(name, getattr(self.widths, name), 1, MOST_WIDTH)
        check_choice("wire", self.widths.wire, ("float32", "float16"))
        _ = self.sizes.num_bytes  # raises where the segment would be too large

    @property
    def sizes(self) -> SegmentSizes:
        """The sizes of the segment that holds its slots."""
        return SegmentSizes.of_service(self.slots, self.rows_per_slot, self.widths)
