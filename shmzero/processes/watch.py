"""Tells a child that is stuck from one that works, waits or is being started."""

from __future__ import annotations

import mmap
import os
import struct
import time

from shmzero.shm.names import nameless_file

START_S = 120.0
"""A child that does nothing for so long after its start hangs."""
GLANCE_S = 1.0
"""How much time one look at a child that stands still counts at most: this process may have been away itself."""


class Pulse:
    """A number in memory that a child moves on with every piece of work, for its parent to see.

    Unlike a message it needs nobody to send or to receive it.
    """

    def __init__(self, fd: int | None = None) -> None:
        """The parent's end, or with `fd` that of a child that inherited it. Raises OSError."""
        self.fd = nameless_file("shmzero-pulse") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)

    @property
    def value(self) -> int:
        """The number as it is now."""
        number: int = struct.unpack_from("=Q", self._memory)[0]
        return number

    def beat(self) -> None:
        """Move the number on. Only the child calls this, from any thread."""
        struct.pack_into("=Q", self._memory, 0, self.value + 1)

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


class Watch:
    """Tells a child that is stuck from one that works, waits or is being started.

    It is stuck when it has work and for so long has moved nothing on. How long its work takes, and whether it lives,
    says nothing. Nor does time in which this process was away itself, and perhaps the whole machine with it.
    """

    def __init__(self, moved: bool = False) -> None:
        """`moved` says that the child has been started before."""
        self.still_s = 0.0
        """For how long the child has had work and moved nothing on."""
        self.moved = moved
        """Whether the child has moved anything on since it was started."""
        self._progress: object = None
        self._looked_at: float | None = None

    def look(self, progress: object, has_work: bool) -> None:
        """Look at the child; call this often. `progress` changes when the child moves something on."""
        now = time.monotonic()
        passed_s = 0.0 if self._looked_at is None else min(now - self._looked_at, GLANCE_S)
        changed = progress != self._progress
        self.moved = self.moved or (changed and self._looked_at is not None)
        self.still_s = 0.0 if changed or not has_work else self.still_s + passed_s
        self._progress, self._looked_at = progress, now

    def stuck_s(self, stall_s: float) -> float | None:
        """The time that it was allowed, where it has taken longer: `stall_s`, or START_S until it first moved."""
        allowed_s = stall_s if self.moved else max(START_S, stall_s)
        return allowed_s if self.still_s > allowed_s else None
