"""What a client and its requests share: who serves the name, and blocks to send requests in.

It sends nothing itself. A Link waits, up to a deadline, for a server and for a free block, and says what is wrong
where none comes. Read next: connection.py (one mapped segment), pending.py (requests that go over it).
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import ClassVar, Protocol

from shmzero import _core
from shmzero.errors import SegmentCorrupt, SegmentError, ServerGone
from shmzero.service.connection import MOST_PORTS, Connection
from shmzero.service.options import spin_us_or_default
from shmzero.shm.names import inode_of, service_path
from shmzero.shm.service_segment import find_service
from shmzero.shm.sizes import Widths

LOOK_S = 0.02
"""How long to wait between two looks for a server, or for a free block."""
CONNECT_S = 30.0
"""How long a call without a time-out of its own waits for a server."""


class HoldsBlocks(Protocol):
    """A request that may hold blocks whose answers have come."""

    def collect(self) -> None:
        """Take these answers out of their blocks, which are free then. Never blocks."""


class Link:
    """One client's way to whoever serves its name. All of its threads share it.

    A deadline is a time of the monotonic clock. Every wait raises ServerGone where nobody serves the name by then,
    and at once SegmentError where the name is another user's or there is no /dev/shm.
    """

    _all: ClassVar[weakref.WeakSet[Link]] = weakref.WeakSet()

    def __init__(self, name: str, spin_us: float | None) -> None:
        """Looks for nobody yet. Raises ConfigError for a name or `spin_us` that cannot be."""
        self.name = name
        self.given_spin_us = spin_us
        self.spin_us = spin_us_or_default(spin_us)
        """How long a wait for an answer spins at most before it sleeps."""
        self.version = 0
        """The version of the weights that gave the last answer; the oldest for a split request."""
        self.path = service_path(name)
        self.connection: Connection | None = None
        """The newest connection; its server may be gone."""
        self._widths: Widths | None = None
        self._refusal = ""
        self._pending: weakref.WeakSet[HoldsBlocks] = weakref.WeakSet()
        self._lock = threading.Lock()  # guards connection, _widths and _pending; never held while waiting
        Link._all.add(self)

    def add(self, request: HoldsBlocks) -> None:
        """Have `try_acquire` ask this request for its blocks, as long as the request lives."""
        with self._lock:
            self._pending.add(request)

    # --- finding the server ---------------------------------------------------------------------------

    def find(self) -> Connection | None:
        """A new connection to whoever serves the name now."""
        try:
            found = find_service(self.name)
        except SegmentCorrupt as error:
            self._refusal = f" (there is a {error})"  # in the making, or nobody's, or another container's
            return None
        self._refusal = ""
        if found is None:
            return None
        connection = Connection(*found)
        return connection if connection.is_served else None

    def current(self, deadline: float | None = None) -> Connection:
        """The newest connection. Only where there is none yet it waits: until the deadline, or for CONNECT_S."""
        if self.connection is not None:
            return self.connection
        return self.connect(None, time.monotonic() + CONNECT_S if deadline is None else deadline)

    def connect(self, lost: Connection | None, deadline: float) -> Connection:
        """The connection that takes the place of `lost`. Waits for it."""
        while True:
            with self._lock:
                connection = self._look_up(lost)
            if connection is not None:
                return connection
            left = deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(LOOK_S, left))
        if lost is not None and lost.segment.service_closed:
            raise ServerGone(f"service {self.name!r} has been closed by its server and nobody else serves it")
        raise ServerGone(
            f"nobody serves {self.name!r}{self._refusal}; start python -m shmzero.serve --name {self.name}"
        )

    def _look_up(self, lost: Connection | None) -> Connection | None:
        """What another thread has found in place of `lost`, or who serves now. The caller holds the lock."""
        if self.connection is lost or self.connection is None:
            self.connection = self.find()
            if self.connection is not None:
                widths = self.connection.widths
                if self._widths is not None and self._widths != widths:
                    self.connection = None
                    raise ServerGone(
                        f"service {self.name!r} came back with other widths (state, action, value, wire): "
                        f"{tuple(widths)} instead of {tuple(self._widths)}; make a new Client"
                    )
                self._widths = widths
        return self.connection

    def is_lost(self, connection: Connection) -> bool:
        """Whether this segment will never be served again: its server left on purpose, or is dead and replaced.

        False where the name cannot be looked at: the segment may still be the one behind it.
        """
        if connection.segment.service_closed:
            return True
        try:
            return inode_of(self.path) != connection.inode and not connection.is_served
        except SegmentError:
            return False

    def close(self) -> None:
        """Give the blocks back. A further call attaches again."""
        with self._lock:
            connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    # --- blocks ---------------------------------------------------------------------------------------

    def acquire(self, connection: Connection, deadline: float) -> tuple[Connection, _core.RequestPort]:
        """A port to send with, of this connection or the one that takes its place.

        Raises TimeoutError where every block is in use until the deadline.
        """
        while True:
            port = self.try_acquire(connection)
            if port is not None:
                return connection, port
            left = deadline - time.monotonic()
            if not connection.is_served:
                connection = self.connect(connection, deadline)
            elif left <= 0:
                raise self._no_block(connection)
            else:
                connection.wait_for_port(min(LOOK_S, left))

    def try_acquire(self, connection: Connection) -> _core.RequestPort | None:
        """A port whose block is free, or becomes free when answers are collected that nobody has asked for yet."""
        port = connection.try_acquire()
        if port is None:
            with self._lock:
                pending = list(self._pending)
            for request in pending:
                request.collect()
            port = connection.try_acquire()
        return port

    def _no_block(self, connection: Connection) -> TimeoutError:
        if connection.is_full:
            return TimeoutError(
                f"this client of {self.name!r} has {MOST_PORTS} requests in flight, the most that one client may "
                "have, and none of them was answered within the time-out; a further Client may have as many"
            )
        return TimeoutError(
            f"service {self.name!r} had no free slot within the time-out; "
            f"all {connection.num_blocks} are in use: start it with more slots"
        )

    def too_late(self, connection: Connection, num_rows: int) -> Exception:
        """The error of a request of so many rows that was not answered in time."""
        owner = _core.identity_pid(connection.segment.service_owner)
        if not connection.is_served:
            return ServerGone(f"the server of {self.name!r} (process {owner}) died and was not restarted in time")
        return TimeoutError(f"service {self.name!r} (process {owner}) did not answer {num_rows} rows in time")

    def _after_fork(self) -> None:
        self.connection = None  # the blocks are the parent's
        self._pending = weakref.WeakSet()
        self._lock = threading.Lock()  # another thread of the parent may have held this one


def _after_fork() -> None:
    for link in list(Link._all):
        link._after_fork()


os.register_at_fork(after_in_child=_after_fork)
