"""Makes and maps segments. The layout is csrc/shm/shm_layout.h.

A private segment, of a run or a BatchedEvaluator, is a file in memory without a name, sealed against
other sizes. Read next: service_segment.py, whose segments have names."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shmzero import _core
from shmzero.errors import ConfigError, SegmentError
from shmzero.shm.names import FOLDER, dead_files, nameless_file, sweep_leftovers

CACHE = ("active_file", "inactive_file")
"""Entries of a control group's memory.stat that count memory which the kernel gives up before it kills."""


@dataclass
class PrivateSegment:
    """A mapped segment without a name; children inherit `fd`. Close it when they are gone."""

    segment: _core.Segment
    fd: int

    def close(self) -> None:
        os.close(self.fd)


def create_private(
    servers: int,
    workers: int,
    slots: int,
    rows: int,
    state_dim: int = _core.NUM_FEATURES,
    action_dim: int = _core.NUM_ACTIONS,
    value_dim: int = 1,
    wire: str = "float16",
) -> PrivateSegment:
    """Allocate and map a segment of `rows` rows a slot, in memory that has no name.

    The room is really allocated: where there is too little, this raises SegmentError, and nothing dies
    of it later. What others left who were killed is removed first.
    """
    sweep_leftovers()
    try:
        fd = nameless_file("shmzero-segment")
    except OSError as error:
        raise SegmentError(f"memory for a segment cannot be had: {error.strerror}") from None
    try:
        segment = allocate(fd, servers, workers, slots, rows, state_dim, action_dim, value_dim, wire)
    except BaseException:
        os.close(fd)
        raise
    return PrivateSegment(segment, fd)


def allocate(
    fd: int, servers: int, workers: int, slots: int, rows: int,
    state_dim: int, action_dim: int, value_dim: int, wire: str,
) -> _core.Segment:  # fmt: skip
    try:
        size = _core.segment_bytes(servers, workers, slots, rows, state_dim, action_dim, value_dim, wire)
        free = _free_memory()
        if free is not None and size > free:  # the kernel would kill instead of refusing
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        os.posix_fallocate(fd, 0, size)
        segment = _core.Segment.create(
            fd, servers, workers, slots, rows, state_dim, action_dim, value_dim, wire, secrets.randbits(63)
        )
    except OSError as error:
        raise SegmentError(_no_room(fd, size, error)) from None
    except ValueError as error:
        raise ConfigError(f"segment cannot be made: {error}") from None
    os.set_inheritable(fd, False)
    return segment


def attach(fd: int) -> _core.Segment:
    """Raises SegmentCorrupt where it is no segment, SegmentError where there is no room to map it."""
    try:
        return _core.Segment.attach(fd)
    except OSError as error:
        raise SegmentError(f"a segment cannot be mapped: {error.strerror}") from None


def _no_room(fd: int, size: int, error: OSError) -> str:
    """A text that says what there was too little of, and what can be done."""
    wanted, less = f"{size / 1e6:.1f} MB", "use fewer slots, rows or lanes, or a smaller max_batch"
    if error.errno == errno.EFBIG:
        return f"a segment of {wanted} is larger than files may be here: raise `ulimit -f`, or {less}"
    in_folder = os.path.isdir(FOLDER) and os.fstat(fd).st_dev == os.stat(FOLDER).st_dev
    if error.errno != errno.ENOSPC or not in_folder:
        free = _free_memory()
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


def _free_memory() -> int | None:
    """Bytes of memory that this process may still take: the least of what the machine and its control groups
    have left, page cache counted as free. None where that is not to be known."""
    rooms = list(_group_rooms())
    with suppress(OSError):
        available = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if available:
            rooms.append(int(available[1]) * 1024)
    return max(min(rooms), 0) if rooms else None


def _group_rooms() -> Iterator[int]:
    """What is left of the limits of the control groups that this process is in: both versions, cgroups(7)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, usage = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = Path(root + path)
        for folder in (group, *group.parents):  # a container may see the last of them only
            with suppress(OSError, ValueError):  # not there, or no limit ("max")
                most, used = (int((folder / file).read_text()) for file in (limit, usage))
                counts = dict(each.split() for each in (folder / "memory.stat").read_text().splitlines())
                cache = sum(int(counts.get(f"total_{kind}", counts.get(kind, 0))) for kind in CACHE)
                yield most - used + cache
