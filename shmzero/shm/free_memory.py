"""How much memory this process may still take: of the machine, and of the control groups that it is in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CACHE = ("active_file", "inactive_file")
"""Entries of a control group's memory.stat that count memory which the kernel gives up before it kills."""


def free_memory() -> int | None:
    """Bytes of memory that this process may still take, or None where the kernel does not tell.

    It is the least of what the machine and the control groups have left. Page cache counts as free.
    """
    found = list(_free_in_groups())
    with suppress(OSError):
        available = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if available:
            found.append(int(available[1]) * 1024)
    return max(min(found), 0) if found else None


def _free_in_groups() -> Iterator[int]:
    """Bytes left of each limit of the control groups that this process is in, of both versions: cgroups(7)."""
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
