"""Requests on their way: rows of one slot, and rows of several that are sent as slots become free.

Read next: link.py (what they are sent over), client.py (whose calls make them).
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.errors import ModelFailed, RequestLost, ServerGone
from shmzero.service.arrays import as_torch
from shmzero.service.connection import Connection, give_up
from shmzero.service.link import Link
from shmzero.settings import seconds

Answer = tuple[NDArray[np.float32], NDArray[np.float32], int]
"""(policies [n, A] or [A], values [n, V] or [V], version of the weights)"""


class Piece:
    """Rows of one slot on their way, with what it takes to send them again.

    A signal handler may raise in every method. Afterwards the answer is there, or the rows are on their way, or
    neither, and then `finish` sends them anew.
    """

    def __init__(self, link: Link, states: NDArray[Any], masks: NDArray[np.bool_], first_row: int = 0) -> None:
        """`first_row` is where these rows begin among the rows of their call."""
        self.link = link
        self.first_row = first_row
        self.states = states
        self.masks = masks
        self.connection: Connection | None = None
        """The connection that the port belongs to, as long as there is a port."""
        self.port: _core.RequestPort | None = None
        self._answer: Answer | None = None
        self._error: ModelFailed | None = None

    @property
    def num_rows(self) -> int:
        return len(self.states) if self.states.ndim == 2 else 1

    @property
    def is_sent(self) -> bool:
        """Whether the rows have been sent, or the answer has come back."""
        return self.port is not None or self._answer is not None or self._error is not None

    @property
    def answer(self) -> Answer:
        """The answer that `finish` has waited for."""
        assert self._answer is not None
        return self._answer

    def send(self, connection: Connection, port: _core.RequestPort) -> None:
        """Send the rows with this port, which is the piece's from now on. Raises ServerGone where they do not fit."""
        self.connection, self.port = connection, port
        try:
            if self.num_rows > connection.segment.rows_per_slot:
                raise ServerGone(f"service {self.link.name!r} came back with smaller slots; ask again")
            port.submit(self.states, self.masks)
        except RequestLost:
            self.drop()  # `finish` sends it again
        except BaseException:
            self.drop()
            raise

    def finish(self, deadline: float) -> Answer:
        """Send the rows unless they are on their way, and wait for the answer.

        Where the server was replaced, its successor is asked; where the slot was taken away, another one is taken.
        After a TimeoutError the request is still on its way.
        """
        num_sent = 0
        while self._answer is None:
            if self._error is not None:
                raise self._error
            connection, port = self.connection, self.port
            left = deadline - time.monotonic()
            if connection is None or port is None:
                if num_sent > 0 and left <= 0:
                    raise self.link.too_late(self.link.current(), self.num_rows)
                self._send_anew(deadline)
                num_sent += 1
                continue
            try:
                is_answered = port.wait(left * 1e3, self.link.spin_us)
            except RequestLost:
                self.drop()
                continue
            if is_answered:
                self.collect()
            elif self.link.is_lost(connection):
                self.drop()
                self.link.connect(connection, deadline)
            elif left <= 0:
                raise self.link.too_late(connection, self.num_rows)
        return self._answer

    def collect(self) -> None:
        """Take the answer out of the slot, if it is there. The slot is free for others then."""
        connection, port = self.connection, self.port
        if connection is None or port is None:
            return
        try:
            if not port.answered:
                return
            self.connection = self.port = None
            self._answer = port.take(self.num_rows, self.states.ndim == 1)
        except RequestLost:
            self.connection = self.port = None
            connection.forget(port)
            return
        except ModelFailed as error:
            of_call = f" (it begins at row {self.first_row} of the call)" if self.first_row else ""
            self._error = ModelFailed(f"{error}{of_call}")
        except BaseException:
            give_up(connection, port)
            raise
        connection.release(port)

    def _send_anew(self, deadline: float) -> None:
        connection = self.link.current(deadline)
        if self.num_rows > connection.segment.rows_per_slot:  # smaller slots than before
            answers, version = split(self.link, connection, self.states, self.masks, None, deadline)
            self._answer = *answers, version
        else:
            self.send(*self.link.acquire(connection, deadline))

    def drop(self) -> None:
        """Give the request up, if it has been sent."""
        connection, port = self.connection, self.port
        self.connection = self.port = None
        if connection is not None and port is not None:
            give_up(connection, port)


class PendingRequest:
    """Rows on their way to a service, in as many pieces as they need slots.

    Dropping it gives the request up: its ports do so when they are freed, in the core, where no signal handler
    raises. A time-out does not give it up.
    """

    def __init__(
        self, link: Link, connection: Connection, states: NDArray[Any], masks: NDArray[np.bool_], like: Any
    ) -> None:
        self.version = 0
        """The version of the oldest weights that answered a row, once there is a result."""
        self._link = link
        self._connection = connection
        self._like = like
        most = connection.segment.rows_per_slot
        self._pieces = [
            Piece(link, states[at : at + most], masks[at : at + most], at) for at in range(0, len(states), most)
        ]
        self._first = 0  # the first piece whose answer has not been waited for
        self._next = 0  # the first piece that has not been sent
        # An exception between acquire and try leaves the lock with its thread. Only that thread gets on then.
        self._lock = threading.RLock()
        self._error: BaseException | None = None
        self._pid = os.getpid()
        connection.segment.check_finite(states)  # all of them, before any is sent
        self._send()
        link.add(self)

    def result(self, timeout: float | None = 30.0) -> tuple[Any, Any]:
        """(policies [n, A], values [n, V]), in the order of the rows. Raises as the client's calls do.

        After a TimeoutError it may be asked again.
        """
        return self._wait(time.monotonic() + seconds("timeout", timeout))

    def _wait(self, deadline: float) -> tuple[Any, Any]:
        if self._pid != os.getpid():
            raise RuntimeError(f"this request belongs to process {self._pid}, of which this one is a fork")
        left = min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=left):  # another thread waits for this result
            raise self._link.too_late(self._connection, sum(piece.num_rows for piece in self._out()))
        try:
            if self._error is not None:
                raise self._error
            while self._first < len(self._pieces):
                self._connection = self._link.connection or self._connection
                self._send()
                self._pieces[self._first].finish(deadline)  # which waits for a slot only where none is held
                self._first += 1
            return self._joined()
        except (ModelFailed, ServerGone, ValueError) as error:  # after any other it may be asked again
            self._error = error
            self._drop()
            raise
        finally:
            self._lock.release()

    def _out(self) -> list[Piece]:
        """Pieces that hold a slot."""
        return [piece for piece in self._pieces[self._first : self._next + 1] if piece.port is not None]

    def _send(self) -> None:
        """Send as many pieces as there are free slots for, or keep to one where other threads wait for slots."""
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            if not piece.is_sent:
                if piece.num_rows > self._connection.segment.rows_per_slot:
                    return  # of a successor: `finish` splits it
                most = 1 if self._connection.is_wanted else self._connection.most_pieces
                port = self._link.try_acquire(self._connection) if len(self._out()) < most else None
                if port is None:
                    return
                piece.send(self._connection, port)
            self._next += 1

    def collect(self) -> None:
        """Take the answers that have come out of their slots, unless another thread does so right now."""
        if self._pid == os.getpid() and self._lock.acquire(blocking=False):
            try:
                for piece in self._out():
                    piece.collect()
            finally:
                self._lock.release()

    def _joined(self) -> tuple[Any, Any]:
        segment = self._connection.segment
        if self._pieces:
            answers = [piece.answer for piece in self._pieces]
            policies = np.concatenate([answer[0] for answer in answers])
            values = np.concatenate([answer[1] for answer in answers])
            self.version = self._link.version = min(answer[2] for answer in answers)
        else:
            policies = np.empty((0, segment.action_dim), np.float32)
            values = np.empty((0, segment.value_dim), np.float32)
        if self._like is None:
            return policies, values
        return as_torch(policies, self._like), as_torch(values, self._like)

    def _drop(self) -> None:
        for piece in self._out():
            piece.drop()


def split(
    link: Link, connection: Connection, states: NDArray[Any], masks: NDArray[np.bool_], like: Any, deadline: float
) -> tuple[tuple[Any, Any], int]:
    """Send rows of more than one slot and wait for the answer: (policies, values) and the oldest version."""
    request = PendingRequest(link, connection, states, masks, like)
    try:
        return request._wait(deadline), request.version
    finally:
        request._drop()  # at once: a traceback may keep it alive


def call(link: Link, connection: Connection, states: NDArray[Any], masks: NDArray[np.bool_], deadline: float) -> Answer:
    """Send rows of one slot and wait for the answer. The straight path is one call of the core."""
    port = connection.try_acquire()
    if port is None:
        connection, port = link.acquire(connection, deadline)
        if states.ndim == 2 and len(states) > connection.segment.rows_per_slot:  # a successor's
            connection.release(port)
            answers, version = split(link, connection, states, masks, None, deadline)
            return *answers, version
    is_lost = False
    try:
        answer = port.call(states, masks, (deadline - time.monotonic()) * 1e3, link.spin_us)
    except RequestLost:
        connection.forget(port)
        answer, is_lost = None, True
    except (ValueError, ModelFailed):
        connection.release(port)
        raise
    except BaseException:
        give_up(connection, port)
        raise
    if answer is None:
        piece = Piece(link, states, masks)
        if not is_lost:
            piece.connection, piece.port = connection, port
        try:
            return piece.finish(deadline)
        finally:
            piece.drop()
    connection.release(port)
    return answer
