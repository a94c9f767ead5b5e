"""What sizes a segment has: widths of its rows, and how many processes, slots and rows.

The layout that follows from them is csrc/shm/shm_layout.h. Read next: segment.py, which allocates one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from shmzero import _core
from shmzero.errors import ConfigError


class Widths(NamedTuple):
    """Widths of a row and of its answer."""

    state_dim: int
    action_dim: int
    """Width of a mask and of a policy."""
    value_dim: int
    wire: str
    """float16 or float32: how states travel."""

    @property
    def mask_words(self) -> int:
        """Words of 64 actions in a mask."""
        return _core.num_mask_words(self.action_dim)


ENGINE_WIDTHS = Widths(_core.NUM_FEATURES, _core.NUM_ACTIONS, 1, "float16")
"""Those of the rows that self-play asks for."""


@dataclass(frozen=True)
class SegmentSizes:
    """All sizes of a segment."""

    num_servers: int
    num_workers: int
    """Workers of a run; in a service, blocks that clients claim."""
    slots_per_worker: int
    rows_per_slot: int
    widths: Widths

    @classmethod
    def of_service(cls, blocks: int, rows: int, widths: Widths) -> SegmentSizes:
        """A service's: one server, and one slot of `rows` rows in each block."""
        return cls(1, blocks, 1, rows, widths)

    @classmethod
    def of(cls, segment: _core.Segment) -> SegmentSizes:
        """The sizes of a mapped segment."""
        widths = Widths(segment.state_dim, segment.action_dim, segment.value_dim, segment.wire)
        return cls(segment.num_servers, segment.num_workers, segment.slots_per_worker, segment.rows_per_slot, widths)

    @property
    def arguments(self) -> tuple[int, int, int, int, int, int, int, str]:
        """All of them in the order in which the core's functions take them."""
        return self.num_servers, self.num_workers, self.slots_per_worker, self.rows_per_slot, *self.widths

    @property
    def num_bytes(self) -> int:
        """How large such a segment is. Raises ConfigError for sizes that no segment has."""
        try:
            return _core.segment_bytes(*self.arguments)
        except ValueError as error:
            raise ConfigError(f"segment cannot be made: {error}") from None
