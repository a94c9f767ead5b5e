"""A client's hold on a service: the mapped segment and the blocks in it that this process has claimed.

It sends nothing itself. A signal handler may raise at any bytecode, so nothing here is counted up and down: a port
that an exception drops gives its block back when it is freed, and only ports that live are counted. For the same
reason there are no Conditions, whose lock an exception can leave held. Read next: link.py, which finds the service.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

from shmzero import _core
from shmzero.shm.sizes import SegmentSizes

MOST_PORTS = 16
"""Requests that one client has in flight at most; further threads wait."""


class Connection:
    """A mapped segment and the blocks in it that this process has claimed.

    Between two requests a block rests: it is taken up again, unless another client needed it meanwhile.
    """

    def __init__(self, segment: _core.Segment, inode: int) -> None:
        self.segment = segment
        self.inode = inode
        self.widths = SegmentSizes.of(segment).widths
        """Widths of the service's rows and answers."""
        self._identity = _core.own_identity()
        self._idle: deque[_core.RequestPort] = deque()
        self._ports: list[weakref.ref[_core.RequestPort]] = []
        """All ports that hold a block, those in use as well, and some that are gone."""
        self._claiming = threading.Lock()
        self._waiters: deque[threading.Lock] = deque()
        """One held lock for each thread that waits for a port. Whoever releases a port releases one of them."""

    @property
    def num_blocks(self) -> int:
        """How many blocks all clients of the service have together. A block lies where a run has a worker's slots."""
        return self.segment.num_workers

    @property
    def is_served(self) -> bool:
        """Whether somebody serves it; a server that cannot be looked at does."""
        owner = self.segment.service_owner
        return owner != 0 and not self.segment.service_closed and _core.life_of(owner) != "dead"

    @property
    def is_full(self) -> bool:
        """Whether this client may have no further request in flight."""
        return sum(port() is not None for port in self._ports) >= MOST_PORTS

    @property
    def most_pieces(self) -> int:
        """Slots that one split request may hold: half of them, so that others get on."""
        return max(1, min(MOST_PORTS, self.num_blocks) // 2)

    @property
    def is_wanted(self) -> bool:
        """Whether a thread waits for a port."""
        return bool(self._waiters)

    def try_acquire(self) -> _core.RequestPort | None:
        """A port whose slot is free, if there is one now."""
        while True:
            try:
                port = self._idle.pop()  # one bytecode: no lock
            except IndexError:
                break
            if port.resume():
                return port
            del port  # its block is another client's by now
        with self._claiming:
            if self.is_full:
                return None
            claimed = _core.RequestPort.claim(self.segment, self._identity)
            if claimed is not None:
                living = [known for known in self._ports if known() is not None]
                self._ports = [*living, weakref.ref(claimed)]
            return claimed

    def wait_for_port(self, seconds: float) -> None:
        """Wait until a port is released, at most so long."""
        bell = threading.Lock()
        bell.acquire()
        try:
            self._waiters.append(bell)
            if not self._idle:
                bell.acquire(timeout=seconds)
        finally:
            try:
                self._waiters.remove(bell)
            except ValueError:
                pass  # it was rung

    def release(self, port: _core.RequestPort) -> None:
        """Take back a port whose slot is free. Whatever this raises, the port is the caller's no longer."""
        if not port.rest():
            self.forget(port)
            return
        self._idle.append(port)
        if self._waiters:
            try:
                self._waiters.popleft().release()
            except IndexError:
                pass  # it gave up

    def forget(self, port: _core.RequestPort) -> None:
        """Give a block back to the service, whatever state it is in."""
        port.close()
        with self._claiming:
            self._ports = [known for known in self._ports if known() not in (None, port)]

    def close(self) -> None:
        """Give all blocks back that are not in use."""
        while self._idle:
            self.forget(self._idle.pop())


def give_up(connection: Connection, port: _core.RequestPort) -> None:
    """Withdraw what was sent with this port. Its block is free at once, or when the server has done with it."""
    if port.cancel():
        connection.release(port)
    else:
        connection.forget(port)  # the server's until it has done with it; then anybody's
