"""One child process: started with a spec and inherited files, gone when its parent is, and what it said last.

It does not know what the child does. Read next: launch.py.
"""

from __future__ import annotations

import errno
import functools
import json
import mmap
import os
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shmzero.errors import StartError, WorkerDied
from shmzero.segment import nameless_file

MOST_DEATHS = 5
DEATH_WINDOW_S = 60.0
"""A run ends after MOST_DEATHS deaths of children within DEATH_WINDOW_S, or in a row with nothing done in between."""
START_S = 120.0
"""A child that does nothing for so long after its start hangs."""
GLANCE_S = 1.0
"""How much time one look at a child that stands still counts at most: this process may have been away itself."""


@dataclass
class Child:
    """A process, what becomes readable when it ends, and what it last said on stderr (an anonymous file)."""

    process: subprocess.Popen[bytes]
    end_fd: int
    stderr_fd: int
    fds: list[int]

    def last_words(self) -> str:
        size = os.fstat(self.stderr_fd).st_size
        text = os.pread(self.stderr_fd, 8000, max(0, size - 8000)).decode(errors="replace").strip()
        status = self.process.returncode
        return text or f"(it said nothing; exit status {status})"

    def close(self) -> None:
        for fd in [self.end_fd, self.stderr_fd, *self.fds]:
            os.close(fd)


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


class Deaths:
    """Counts children that ended and are replaced."""

    def __init__(self) -> None:
        self.total = 0
        self._times: deque[float] = deque()
        self._in_a_row = 0

    def went_on(self) -> None:
        """Note that work was finished: the next death is the first in a row."""
        self._in_a_row = 0

    def count(self, what: str, child: Child) -> str:
        """A line about `child`, which has ended.

        Raises WorkerDied for the MOST_DEATHS-th within DEATH_WINDOW_S, or in a row.
        """
        now = time.monotonic()
        self._times.append(now)
        self._in_a_row += 1
        while now - self._times[0] > DEATH_WINDOW_S:
            self._times.popleft()
        words, status = child.last_words(), child.process.returncode
        if len(self._times) >= MOST_DEATHS or self._in_a_row >= MOST_DEATHS:
            span = f"within {DEATH_WINDOW_S:g} s" if len(self._times) >= MOST_DEATHS else "with nothing done in between"
            raise WorkerDied(
                f"{what} ended with status {status}, the {MOST_DEATHS}th death of a child {span}; "
                f"its last words:\n{words}"
            )
        self.total += 1
        return f"{what} ended with status {status} and is replaced: {words.splitlines()[-1]}"


@contextmanager
def starting(what: str) -> Iterator[ExitStack]:
    """A stack of what to undo where `what` cannot be started, for which it raises StartError."""
    with ExitStack() as undo:
        try:
            yield undo
        except OSError as error:
            raise StartError(
                f"{what} cannot be started: {error.strerror}; "
                "use fewer --workers, or allow more files and processes (ulimit -n, ulimit -u)"
            ) from None
        undo.pop_all()


@functools.cache
def has_pidfd() -> bool:
    """Whether this kernel tells of a death by pidfd (Linux 5.3, and permitted)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except AttributeError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


def start_child(module: str, spec: dict[str, Any], fds: list[int], threads: int) -> Child:
    """Start `python -m module` with `spec` in a file, inheriting `fds`; it dies with this process.

    Raises StartError where the machine has no room for it.
    """
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent.parent), *filter(None, [environment.get("PYTHONPATH")])]
    )
    with starting(f"a process of {module}") as undo, ExitStack() as theirs:
        spec_fd = nameless_file("shmzero-spec")
        theirs.callback(os.close, spec_fd)
        os.write(spec_fd, json.dumps(spec | {"parent_pid": os.getpid()}).encode())
        os.lseek(spec_fd, 0, os.SEEK_SET)
        stderr_fd = nameless_file("shmzero-stderr")
        undo.callback(os.close, stderr_fd)
        inherited = [spec_fd, *fds]
        end_fd = -1
        if not has_pidfd():  # a pipe that the child holds the other end of, until it ends
            end_fd, life = os.pipe()
            undo.callback(os.close, end_fd)
            theirs.callback(os.close, life)
            inherited.append(life)
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--spec-fd", str(spec_fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr_fd,
            pass_fds=inherited,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is the parent's alone
        )
        undo.callback(process.wait)
        undo.callback(process.kill)
        if end_fd < 0:
            end_fd = os.pidfd_open(process.pid)
    return Child(process, end_fd, stderr_fd, [])
