"""Makes and maps segments. The layout is csrc/shm/shm_layout.h.

A private segment, of a run or a BatchedEvaluator, is a file in memory without a name, sealed against
other sizes. Read next: service_segment.py, whose segments have names.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass

from shmzero import _core
from shmzero.errors import SegmentError
from shmzero.shm.free_memory import free_memory
from shmzero.shm.names import FOLDER, dead_files, nameless_file, sweep_leftovers
from shmzero.shm.sizes import ENGINE_WIDTHS, SegmentSizes, Widths


@dataclass
class PrivateSegment:
    """A mapped segment without a name; children inherit `fd`. Close it when they are gone."""

    segment: _core.Segment
    fd: int

    def close(self) -> None:
        os.close(self.fd)


def create_private(servers: int, workers: int, slots: int, rows: int, widths: Widths = ENGINE_WIDTHS) -> PrivateSegment:
    """Allocate and map a segment of `rows` rows a slot, in memory that has no name.

    The room is really allocated: where there is too little, this raises SegmentError, and nothing dies
    of it later. What others left who were killed is removed first. Raises ConfigError for sizes that no segment has.
    """
    sweep_leftovers()
    try:
        fd = nameless_file("shmzero-segment")
    except OSError as error:
        raise SegmentError(f"memory for a segment cannot be had: {error.strerror}") from None
    try:
        segment = allocate(fd, SegmentSizes(servers, workers, slots, rows, widths))
    except BaseException:
        os.close(fd)
        raise
    return PrivateSegment(segment, fd)


def allocate(fd: int, sizes: SegmentSizes) -> _core.Segment:
    """Make an empty file a segment and map it. Raises ConfigError and SegmentError as `create_private` does."""
    num_bytes = sizes.num_bytes
    try:
        free = free_memory()
        if free is not None and num_bytes > free:  # the kernel would kill instead of refusing
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        os.posix_fallocate(fd, 0, num_bytes)
        segment = _core.Segment.create(fd, *sizes.arguments, secrets.randbits(63))
    except OSError as error:
        raise SegmentError(_no_room(fd, num_bytes, error)) from None
    os.set_inheritable(fd, False)
    return segment


def attach(fd: int) -> _core.Segment:
    """Map the segment in a file. Raises SegmentCorrupt where it holds none, SegmentError where it cannot be mapped."""
    try:
        return _core.Segment.attach(fd)
    except OSError as error:
        raise SegmentError(f"a segment cannot be mapped: {error.strerror}") from None


def _no_room(fd: int, size: int, error: OSError) -> str:
    """Return a text that says what there was too little of, and what can be done."""
    wanted, less = f"{size / 1e6:.1f} MB", "use fewer slots, rows or lanes, or a smaller max_batch"
    if error.errno == errno.EFBIG:
        return f"a segment of {wanted} is larger than files may be here: raise `ulimit -f`, or {less}"
    in_folder = os.path.isdir(FOLDER) and os.fstat(fd).st_dev == os.stat(FOLDER).st_dev
    if error.errno != errno.ENOSPC or not in_folder:
        free = free_memory()
        if error.errno == errno.ENOMEM and free is not None and free > size:
            return (
                f"a segment of {wanted} cannot be mapped ({error.strerror}), and memory is free: "
                f"allow this process more (ulimit -v), or {less}"
            )
        known = "" if free is None else f"; {free / 1e6:.1f} MB are free"
        return f"memory has no room for {wanted} ({error.strerror}){known}: {less}"
    left = [(FOLDER + path, os.fstat(other).st_size) for path, other in dead_files(named=True)]
    dead = f"; dead services left {sum(n for _, n in left) / 1e6:.1f} MB: rm {' '.join(p for p, _ in left)}"
    stats = os.statvfs(FOLDER)
    return (
        f"{FOLDER} has no room for {wanted} ({error.strerror}); {stats.f_bavail * stats.f_frsize / 1e6:.1f} MB are "
        f"free{dead if left else ''}: {less}, or a larger {FOLDER}"
    )
