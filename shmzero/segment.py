"""Makes the shared-memory segment of a run. The layout is csrc/shm_layout.h; this is the name and the room."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

import posix_ipc

from shmzero import _core
from shmzero.errors import SegmentError

PREFIX = "/shmzero-"


@dataclass
class PrivateSegment:
    """A mapped segment without a name; children inherit `fd`. Close it when they are gone."""

    segment: _core.Segment
    fd: int

    def close(self) -> None:
        os.close(self.fd)


def create_private(servers: int, workers: int, slots: int, rows: int) -> PrivateSegment:
    """Create, allocate, map and unlink a segment of `rows` rows a slot.

    The room is really allocated: a full /dev/shm raises SegmentError here and is no SIGBUS later.
    Once this returns no name is left, so that nothing can stay behind.
    """
    size = _core.segment_bytes(servers, workers, slots, rows)
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    except (OSError, posix_ipc.Error) as error:
        raise SegmentError(f"shared memory {name} cannot be created: {error}") from None
    try:
        os.posix_fallocate(memory.fd, 0, size)
        segment = _core.Segment.create(
            memory.fd, servers, workers, slots, rows, run_id=secrets.randbits(63)
        )
    except OSError as error:
        os.close(memory.fd)
        raise SegmentError(
            f"/dev/shm has no room for {size / 1e6:.1f} MB ({error.strerror}); "
            f"{_free_bytes() / 1e6:.1f} MB are free: use a smaller --max-batch or --lanes, or a larger /dev/shm"
        ) from None
    finally:
        posix_ipc.unlink_shared_memory(name)
    os.set_inheritable(memory.fd, False)
    return PrivateSegment(segment, memory.fd)


def _free_bytes() -> int:
    try:
        stats = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return stats.f_bavail * stats.f_frsize
