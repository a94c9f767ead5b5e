"""A client's hold on a service: the mapped segment and the blocks in it that this process has claimed.

Sends nothing itself. Read next: client.py.
"""

from __future__ import annotations

import threading
from collections import deque

from shmzero import _core

MOST_PORTS = 16
"""Requests that one client has in flight at most; further threads wait."""


class Connection:
    """A mapped segment and the blocks in it that this process has claimed.

    Between two requests a block rests: it is taken up again, unless another client needed it meanwhile.
    """

    def __init__(self, segment: _core.Segment, inode: int) -> None:
        self.segment = segment
        self.inode = inode
        self._identity = _core.own_identity()
        self._idle: deque[_core.RequestPort] = deque()
        self._num_ports = 0
        self._num_waiting = 0
        self._changed = threading.Condition()

    @property
    def widths(self) -> tuple[int, int, int, str]:
        s = self.segment
        return s.state_dim, s.action_dim, s.value_dim, s.wire

    @property
    def is_served(self) -> bool:
        """Whether somebody serves it; a server that cannot be looked at does."""
        owner = self.segment.service_owner
        return owner != 0 and not self.segment.service_closed and _core.life_of(owner) != "dead"

    @property
    def is_full(self) -> bool:
        """Whether this client may have no further request in flight."""
        return self._num_ports >= MOST_PORTS

    @property
    def most_pieces(self) -> int:
        """Slots that one split request may hold: half of them, so that others get on."""
        return max(1, min(MOST_PORTS, self.segment.num_workers) // 2)

    @property
    def is_wanted(self) -> bool:
        """Whether a thread waits for a port."""
        return self._num_waiting > 0

    def try_acquire(self) -> _core.RequestPort | None:
        """A port whose slot is free, if there is one now."""
        while True:
            try:
                port = self._idle.pop()  # one bytecode: no lock
            except IndexError:
                break
            if port.resume():
                return port
            with self._changed:
                self._num_ports -= 1  # its block is another client's by now
        with self._changed:
            if self.is_full:
                return None
            claimed = _core.RequestPort.claim(self.segment, self._identity)
            if claimed is not None:
                self._num_ports += 1
            return claimed

    def wait_for_port(self, seconds: float) -> None:
        with self._changed:
            self._num_waiting += 1
            if not self._idle:
                self._changed.wait(seconds)
            self._num_waiting -= 1

    def release(self, port: _core.RequestPort) -> None:
        """Take back a port whose slot is free."""
        port.rest()
        self._idle.append(port)
        if self._num_waiting:
            with self._changed:
                self._changed.notify()

    def forget(self, port: _core.RequestPort) -> None:
        """Give a block back to the service, whatever state it is in."""
        port.close()
        with self._changed:
            self._num_ports -= 1

    def close(self) -> None:
        while self._idle:
            self.forget(self._idle.pop())


def give_up(connection: Connection, port: _core.RequestPort) -> None:
    if port.cancel():
        connection.release(port)
    else:
        connection.forget(port)  # the server's until it has done with it; then anybody's
