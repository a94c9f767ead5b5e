"""The reaper: frees the blocks of clients that died. Read next: host.py, whose second thread runs it."""

from __future__ import annotations

import errno
import os
import resource
import select
import sys
import time
from collections.abc import Callable

from shmzero import _core

LOOK_MS = 50
"""How often the reaper looks for clients that it has not seen."""
POLL_S = 0.5
"""How often the reaper looks at clients that it has no descriptor for."""


class Reaper:
    """Frees the blocks of clients that are certainly dead. One that cannot be looked at is alive.

    Deaths come by pidfd, where the kernel has it, in at most half of the descriptors that this process may
    have: the program around us needs some as well. Clients beyond these are looked at every POLL_S.
    """

    def __init__(self, segment: _core.Segment, report: Callable[[str], object]) -> None:
        """`report` is given a line where there are more clients than descriptors."""
        self._segment = segment
        self._report = report
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = sys.maxsize if self._limit == resource.RLIM_INFINITY else self._limit // 2
        self._pidfds: dict[int, int] = {}  # by client
        self._poll = select.poll()  # of all pidfds
        self._polled: set[int] = set()  # clients without a pidfd
        self._poll_at = 0.0
        self._has_reported = False
        self._reserve = -1
        self._take_reserve()

    def look(self, timeout_ms: int) -> None:
        """Wait for a death, at most so long; then look for new clients and for dead ones."""
        self._poll.poll(timeout_ms)
        owners = set(self._segment.owners())
        for identity in self._pidfds.keys() - owners:
            self._close(identity)
        self._polled &= owners
        for identity in owners - self._pidfds.keys() - self._polled:
            self._watch(identity)
        watched = {fd: identity for identity, fd in self._pidfds.items()}
        for fd, event in self._poll.poll(0):
            self._fired(watched[fd], bool(event & select.POLLIN))
        if self._polled and time.monotonic() >= self._poll_at:
            for identity in list(self._polled):
                self._reap_if_dead(identity)
            self._poll_at = time.monotonic() + POLL_S

    def _watch(self, identity: int) -> None:
        is_short = len(self._pidfds) >= self._most
        if not is_short:
            try:
                fd = os.pidfd_open(_core.identity_pid(identity))
            except (AttributeError, OSError) as error:  # no pidfd on this kernel; no descriptors left; just dead
                is_short = getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE)
            else:
                self._pidfds[identity] = fd
                self._poll.register(fd, select.POLLIN)
        if self._reap_if_dead(identity):  # only now: the pidfd may be that of another process with the same pid
            return
        if identity not in self._pidfds:
            self._polled.add(identity)
        if is_short and not self._has_reported:
            self._has_reported = True
            self._report(
                f"there are more clients than this process can watch by files (ulimit -n is {self._limit}); "
                f"it looks at the others every {POLL_S:g} s"
            )

    def _fired(self, identity: int, has_ended: bool) -> None:
        """Handle an event of a descriptor, which somebody in this process may have closed or opened anew."""
        if has_ended and self._life(identity) != "alive":
            self._reap(identity)
        else:
            self._close(identity, is_ours=False)
            self._polled.add(identity)

    def _reap_if_dead(self, identity: int) -> bool:
        is_dead = self._life(identity) == "dead"
        if is_dead:
            self._reap(identity)
        return is_dead

    def _reap(self, identity: int) -> None:
        self._segment.reap_client(identity)
        self._polled.discard(identity)
        if identity in self._pidfds:
            self._close(identity)

    def _life(self, identity: int) -> str:
        life = _core.life_of(identity)
        if life == "unknown" and self._reserve >= 0:  # perhaps for want of a descriptor
            os.close(self._reserve)
            life = _core.life_of(identity)
            self._reserve = -1
        self._take_reserve()
        return life

    def _take_reserve(self) -> None:
        """Keep a descriptor back, which is given up for a look at a process where no other is left."""
        if self._reserve < 0:
            try:
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pass  # the next call tries again

    def _close(self, identity: int, is_ours: bool = True) -> None:
        fd = self._pidfds.pop(identity)
        self._poll.unregister(fd)
        if is_ours:
            os.close(fd)

    def close(self) -> None:
        for identity in list(self._pidfds):
            self._close(identity)
        self._polled.clear()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
