"""The slot itself, lent to a caller who wants no copies. Read next: client.py, whose `request` makes one."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.errors import ServerGone
from shmzero.service.arrays import mask_bools
from shmzero.service.connection import Connection, give_up
from shmzero.service.link import Link
from shmzero.settings import seconds


class SlotRequest(AbstractContextManager["SlotRequest"]):
    """The slot itself: fill `states` and `masks`, `run()`, read `policies` and `values`.

    The arrays are views of shared memory, valid until the `with` block ends, and after `run` only
    those that it leaves: where a server was replaced meanwhile, the rows lie in another slot.
    RequestLost out of `run` or at the end of the block: the slot was taken away, and what was read in
    it may be somebody else's.
    """

    states: NDArray[Any]
    """[rows, S] of the wire's type."""
    masks: NDArray[np.uint64]
    """[rows, ceil(A / 64)] legal actions as bits; `pack_masks` makes them out of bools."""
    policies: NDArray[np.float32]
    """[rows, A]"""
    values: NDArray[np.float32]
    """[rows, V]"""

    def __init__(self, link: Link, rows: int, deadline: float) -> None:
        self.version = 0
        self._link = link
        self._rows = rows
        self._deadline = deadline
        self._pid = os.getpid()
        self._connection = link.current(deadline)
        self._sent = False
        self._answered = False
        most = self._connection.segment.rows_per_slot
        if not hasattr(rows, "__index__") or not 1 <= rows <= most:
            raise ValueError(f"rows is {rows!r}; a slot of service {link.name!r} holds 1..{most}")

    def __enter__(self) -> SlotRequest:
        try:
            self._take_slot(self._connection, self._deadline)
            return self
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        port = self.__dict__.pop("_port", None)
        if port is not None:
            give_up(self._connection, port)

    def _take_slot(self, connection: Connection, deadline: float) -> None:
        connection, port = self._link.acquire(connection, deadline)
        if self._rows > connection.segment.rows_per_slot:
            connection.release(port)
            raise ServerGone(f"service {self._link.name!r} came back with smaller slots; ask again")
        self._connection, self._port = connection, port
        states, masks, policies, values = _core.slot_views(connection.segment, port.block, 0)
        self.states, self.masks = states[: self._rows], masks[: self._rows]
        self.policies, self.values = policies[: self._rows], values[: self._rows]

    @staticmethod
    def pack_masks(masks: Any) -> NDArray[np.uint64]:
        """uint64 [n, ceil(A / 64)] out of masks [n, A], bools or 0 and 1."""
        return _core.pack_masks(mask_bools(masks))

    def run(self, timeout: float | None = 30.0) -> None:
        """Send the rows and wait until policies and values are there.

        Once only: RuntimeError the second time. Raises as the client's calls do.
        """
        deadline = time.monotonic() + seconds("timeout", timeout)
        if self._sent:
            raise RuntimeError("this request has been sent already")
        self._port.publish(self._rows)
        self._sent = True
        while True:
            left = deadline - time.monotonic()
            if self._port.wait(left * 1e3, self._link.spin_us):
                break
            if self._link.is_lost(self._connection):
                self._send_again(deadline)
            elif left <= 0:
                raise self._link.too_late(self._connection, self._rows)
        self._port.check_answer()
        self.version = self._link.version = self._port.version
        self._answered = True

    def _send_again(self, deadline: float) -> None:
        lost, port, states, masks = self._connection, self._port, self.states, self.masks
        self._take_slot(self._link.connect(lost, deadline), deadline)
        self.states[:], self.masks[:] = states, masks
        give_up(lost, port)
        self._port.publish(self._rows)

    def __exit__(self, *exception: object) -> None:
        try:
            if self._pid == os.getpid():  # in the child of a fork the request is the parent's
                try:
                    if self._answered and exception[:1] in ((), (None,)):
                        self._port.release()
                finally:
                    self._leave()
        finally:
            self.__dict__.pop("_port", None)
            del self.states, self.masks, self.policies, self.values  # they are somebody else's from now on
            self._sent = self._answered = False
