"""A program's side of an inference service: rows in, answers out. Needs numpy, never torch.

A request is copied into a block of the service's shared memory and its answer copied out of it
(csrc/shm/client.h, without the GIL). This module finds the service, splits large requests, and asks again
where a server was replaced. Read next: service/server.py.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.errors import ModelFailed, RequestLost, SegmentCorrupt, SegmentError, ServerGone
from shmzero.machine import cores
from shmzero.service.arrays import as_torch, mask_bools, slot_arrays
from shmzero.service.config import check_service
from shmzero.service.connection import MOST_PORTS, Connection, give_up
from shmzero.settings import seconds
from shmzero.shm.names import inode_of, service_path
from shmzero.shm.service_segment import find_service

SLICE_MS = 100.0
"""How long to wait for an answer before looking whether the server is still there."""
LOOK_S = 0.02
"""How long to wait between two looks for a server, or for a free block."""

Answer = tuple[NDArray[np.float32], NDArray[np.float32], int]


class Client:
    """Evaluates rows on a service, from any thread of any process of this machine.

    Pickles as its name; the child of a fork attaches anew. Raises in every call: ValueError for
    wrong shapes and for states that are not finite, TimeoutError after `timeout` seconds,
    ModelFailed with the server's message, ServerGone where nobody serves the name by then, and at once
    SegmentError where the name is another user's or there is no /dev/shm. `timeout` is for all that a
    call waits for, None without end; a server that is started meanwhile answers it.
    """

    _all: ClassVar[weakref.WeakSet[Client]] = weakref.WeakSet()

    def __init__(self, name: str, *, connect_timeout: float | None = 10.0, spin_us: float | None = None) -> None:
        """Waits up to `connect_timeout` seconds for a server of that name; then raises ServerGone.

        spin_us: how long a call spins at most before it sleeps (default: 50 where there is more than one
        core); spins that are in vain, because processes outnumber cores, shorten the next ones.
        """
        self._prepare(name, spin_us)
        self._connect(None, time.monotonic() + seconds("connect_timeout", connect_timeout))

    def _prepare(self, name: str, spin_us: float | None) -> None:
        check_service("spin_us", spin_us)
        self.name = name
        self.version = 0
        """The version of the weights that gave the last answer; the oldest for a split request."""
        self._path = service_path(name)
        self._given_spin_us = spin_us
        self._spin_us = (50.0 if cores() > 1 else 0.0) if spin_us is None else spin_us
        self._connection: Connection | None = None
        self._widths: tuple[int, int, int, str] | None = None
        self._refusal = ""
        self._pending: weakref.WeakSet[PendingRequest] = weakref.WeakSet()
        self._lock = threading.Lock()  # guards _connection, _widths and _pending; never held while waiting
        Client._all.add(self)

    # --- what the service is ------------------------------------------------------------------------

    @property
    def state_dim(self) -> int:
        """Width of a state."""
        return self._connected().segment.state_dim

    @property
    def action_dim(self) -> int:
        """Width of a mask and of a policy."""
        return self._connected().segment.action_dim

    @property
    def value_dim(self) -> int:
        """Width of a value."""
        return self._connected().segment.value_dim

    @property
    def wire(self) -> str:
        """float16 or float32: how states travel."""
        return self._connected().segment.wire

    @property
    def max_rows(self) -> int:
        """How many rows travel together at most; a request of more is split."""
        return self._connected().segment.rows_per_slot

    # --- calls ----------------------------------------------------------------------------------------

    def evaluate(self, state: Any, mask: Any, timeout: float | None = 30.0) -> tuple[Any, Any]:
        """(policy [A], value [V]) of one state [S] and its mask [A], in the state's kind.

        Masks here and below: bools, or 0 and 1 as any numbers; anything else is a ValueError.
        """
        deadline = time.monotonic() + seconds("timeout", timeout)
        connection = self._connection or self._connect(None, deadline)
        rows, bools, like = slot_arrays(state, mask, connection.segment, 1)
        policy, value, self.version = self._call(connection, rows, bools, deadline)
        return (policy, value) if like is None else (as_torch(policy, like), as_torch(value, like))

    def evaluate_many(self, states: Any, masks: Any, timeout: float | None = 30.0) -> tuple[Any, Any]:
        """(policies [n, A], values [n, V]) of states [n, S] and masks [n, A].

        Stacked arrays or sequences of rows, numpy or torch; the answer is of the input's kind and order.
        """
        deadline = time.monotonic() + seconds("timeout", timeout)
        connection = self._connection or self._connect(None, deadline)
        rows, bools, like = slot_arrays(states, masks, connection.segment, 2)
        if not 0 < len(rows) <= connection.segment.rows_per_slot:
            return self._split(connection, rows, bools, like, deadline)[0]
        policies, values, self.version = self._call(connection, rows, bools, deadline)
        return (policies, values) if like is None else (as_torch(policies, like), as_torch(values, like))

    def submit_many(self, states: Any, masks: Any) -> PendingRequest:
        """Send rows and return at once; `result(timeout)` of what is returned waits for the answer.

        Rows of more than one slot are sent as slots become free, at the latest in `result`. Only a first
        call, which has no server yet, waits for one: up to 30 seconds.
        """
        connection = self._connected()
        rows, bools, like = slot_arrays(states, masks, connection.segment, 2)
        return PendingRequest(self, connection, rows, bools, like)

    def request(self, rows: int, timeout: float | None = 30.0) -> SlotRequest:
        """`with client.request(rows) as r:` gives the slot itself, without a copy: see SlotRequest.

        `rows` is at most `max_rows`; the block is entered `timeout` seconds after this call at the latest.
        """
        return SlotRequest(self, rows, time.monotonic() + seconds("timeout", timeout))

    def close(self) -> None:
        """Give the blocks back. A further call attaches again."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickled, (self.name, self._given_spin_us)

    # --- finding the server ---------------------------------------------------------------------------

    def _connected(self) -> Connection:
        return self._connection or self._connect(None, time.monotonic() + 30.0)

    def _find(self) -> Connection | None:
        """A connection to whoever serves the name now."""
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

    def _connect(self, lost: Connection | None, deadline: float) -> Connection:
        """The connection that takes the place of `lost`. Waits for it; raises ServerGone at the deadline."""
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
        if self._connection is lost or self._connection is None:
            self._connection = self._find()
            if self._connection is not None:
                widths = self._connection.widths
                if self._widths not in (None, widths):
                    self._connection = None
                    raise ServerGone(
                        f"service {self.name!r} came back with other widths (state, action, value, wire): "
                        f"{widths} instead of {self._widths}; make a new Client"
                    )
                self._widths = widths
        return self._connection

    # --- one request ----------------------------------------------------------------------------------

    def _acquire(self, connection: Connection, deadline: float) -> tuple[Connection, _core.RequestPort]:
        """A port to send with, of this connection or the one that takes its place."""
        while True:
            port = self._try_acquire(connection)
            if port is not None:
                return connection, port
            left = deadline - time.monotonic()
            if not connection.is_served:
                connection = self._connect(connection, deadline)
            elif left <= 0:
                raise self._no_slot(connection)
            else:
                connection.wait_for_port(min(LOOK_S, left))

    def _try_acquire(self, connection: Connection) -> _core.RequestPort | None:
        """A port, if there is one now or where answers lie about that nobody has asked for yet."""
        port = connection.try_acquire()
        if port is None:
            with self._lock:
                pending = list(self._pending)
            for request in pending:
                request._collect()
            port = connection.try_acquire()
        return port

    def _no_slot(self, connection: Connection) -> TimeoutError:
        if connection.is_full:
            return TimeoutError(
                f"this client of {self.name!r} has {MOST_PORTS} requests in flight, the most that one client may "
                "have, and none of them was answered within the time-out; a further Client may have as many"
            )
        return TimeoutError(
            f"service {self.name!r} had no free slot within the time-out; "
            f"all {connection.segment.num_workers} are in use: start it with more slots"
        )

    def _split(
        self, connection: Connection, states: NDArray[Any], masks: NDArray[np.bool_], like: Any, deadline: float
    ) -> tuple[tuple[Any, Any], int]:
        """Rows of more than one slot, there and back: (policies, values) and the oldest version."""
        request = PendingRequest(self, connection, states, masks, like)
        try:
            return request._result(deadline), request.version
        finally:
            request._drop()  # at once: a traceback may keep it alive

    def _call(self, connection: Connection, states: NDArray[Any], masks: NDArray[np.bool_], deadline: float) -> Answer:
        """Rows of one slot, there and back. The straight path is one call of the core."""
        port = connection.try_acquire()
        if port is None:
            connection, port = self._acquire(connection, deadline)
            if states.ndim == 2 and len(states) > connection.segment.rows_per_slot:  # a successor's
                connection.release(port)
                answers, version = self._split(connection, states, masks, None, deadline)
                return *answers, version
        is_lost = False
        try:
            answer = port.call(states, masks, _slice_ms(deadline - time.monotonic()), self._spin_us)
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
            piece = Piece(self, states, masks)
            if not is_lost:
                piece.connection, piece.port = connection, port
            try:
                return piece.finish(deadline)
            finally:
                piece.drop()
        connection.release(port)
        return answer


class Piece:
    """Rows of one slot on their way, with what it takes to send them again.

    A signal handler may raise in every method: the answer is there, or the request is out, or both are not and it
    is sent anew.
    """

    def __init__(self, client: Client, states: NDArray[Any], masks: NDArray[np.bool_], first_row: int = 0) -> None:
        """`first_row` is where these rows begin among the rows of their call."""
        self.client = client
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
        self.connection, self.port = connection, port
        try:
            if self.num_rows > connection.segment.rows_per_slot:
                raise ServerGone(f"service {self.client.name!r} came back with smaller slots; ask again")
            port.submit(self.states, self.masks)
        except RequestLost:
            self.drop()  # `finish` sends it again
        except BaseException:
            self.drop()
            raise

    def finish(self, deadline: float) -> Answer:
        """Send it where it is not out, and wait for the answer; where the server is replaced, ask its successor, and
        where the slot was taken away, ask in another.

        After a TimeoutError the request is still out.
        """
        num_sent = 0
        while self._answer is None:
            if self._error is not None:
                raise self._error
            connection, port = self.connection, self.port
            left = deadline - time.monotonic()
            if connection is None or port is None:
                if num_sent > 0 and left <= 0:
                    raise _too_late(self.client, self.client._connected(), self.num_rows)
                self._send_anew(deadline)
                num_sent += 1
                continue
            try:
                is_answered = port.wait(_slice_ms(left), self.client._spin_us)
            except RequestLost:
                self.drop()
                continue
            if is_answered:
                self.collect()
            elif is_lost(self.client, connection):
                self.drop()
                self.client._connect(connection, deadline)
            elif left <= 0:
                raise _too_late(self.client, connection, self.num_rows)
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
        connection = self.client._connection or self.client._connect(None, deadline)
        if self.num_rows > connection.segment.rows_per_slot:  # smaller slots than before
            answers, version = self.client._split(connection, self.states, self.masks, None, deadline)
            self._answer = *answers, version
        else:
            self.send(*self.client._acquire(connection, deadline))

    def drop(self) -> None:
        """Give the request up, if it has been sent."""
        connection, port = self.connection, self.port
        self.connection = self.port = None
        if connection is not None and port is not None:
            give_up(connection, port)


class PendingRequest:
    """Rows on their way to a service. Dropping it gives the request up: its ports do so when they are freed, in the
    core, where no signal handler raises. A time-out does not."""

    def __init__(
        self, client: Client, connection: Connection, states: NDArray[Any], masks: NDArray[np.bool_], like: Any
    ) -> None:
        self.version = 0
        """The version of the oldest weights that answered a row, once there is a result."""
        self._client = client
        self._connection = connection
        self._like = like
        most = connection.segment.rows_per_slot
        self._pieces = [
            Piece(client, states[at : at + most], masks[at : at + most], at) for at in range(0, len(states), most)
        ]
        self._first = 0  # the first piece whose answer has not been waited for
        self._next = 0  # the first piece that has not been sent
        # An exception between acquire and try leaves the lock with its thread. Only that thread gets on then.
        self._lock = threading.RLock()
        self._error: BaseException | None = None
        self._pid = os.getpid()
        connection.segment.check_finite(states)  # all of them, before any is sent
        self._send()
        with client._lock:
            client._pending.add(self)

    def result(self, timeout: float | None = 30.0) -> tuple[Any, Any]:
        """(policies [n, A], values [n, V]), in the order of the rows. Raises as the client's calls do.

        After a TimeoutError it may be asked again.
        """
        return self._result(time.monotonic() + seconds("timeout", timeout))

    def _result(self, deadline: float) -> tuple[Any, Any]:
        if self._pid != os.getpid():
            raise RuntimeError(f"this request belongs to process {self._pid}, of which this one is a fork")
        left = min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=left):  # another thread waits for this result
            raise _too_late(self._client, self._connection, sum(piece.num_rows for piece in self._out()))
        try:
            if self._error is not None:
                raise self._error
            while self._first < len(self._pieces):
                self._connection = self._client._connection or self._connection
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
        return [piece for piece in self._pieces[self._first : self._next + 1] if piece.port is not None]

    def _send(self) -> None:
        """As many pieces as there are free slots for them, one where others wait for slots as well."""
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            if not piece.is_sent:
                if piece.num_rows > self._connection.segment.rows_per_slot:
                    return  # of a successor: `finish` splits it
                most = 1 if self._connection.is_wanted else self._connection.most_pieces
                port = self._client._try_acquire(self._connection) if len(self._out()) < most else None
                if port is None:
                    return
                piece.send(self._connection, port)
            self._next += 1

    def _collect(self) -> None:
        """Take the answers that have come out of their slots, unless another thread is at it."""
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
            self.version = self._client.version = min(answer[2] for answer in answers)
        else:
            policies = np.empty((0, segment.action_dim), np.float32)
            values = np.empty((0, segment.value_dim), np.float32)
        if self._like is None:
            return policies, values
        return as_torch(policies, self._like), as_torch(values, self._like)

    def _drop(self) -> None:
        for piece in self._out():
            piece.drop()


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

    def __init__(self, client: Client, rows: int, deadline: float) -> None:
        self.version = 0
        self._client = client
        self._rows = rows
        self._deadline = deadline
        self._pid = os.getpid()
        self._connection = client._connection or client._connect(None, deadline)
        self._sent = False
        self._answered = False
        most = self._connection.segment.rows_per_slot
        if not hasattr(rows, "__index__") or not 1 <= rows <= most:
            raise ValueError(f"rows is {rows!r}; a slot of service {client.name!r} holds 1..{most}")

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
        connection, port = self._client._acquire(connection, deadline)
        if self._rows > connection.segment.rows_per_slot:
            connection.release(port)
            raise ServerGone(f"service {self._client.name!r} came back with smaller slots; ask again")
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
            if self._port.wait(_slice_ms(left), self._client._spin_us):
                break
            if is_lost(self._client, self._connection):
                self._send_again(deadline)
            elif left <= 0:
                raise _too_late(self._client, self._connection, self._rows)
        self._port.check_answer()
        self.version = self._client.version = self._port.version
        self._answered = True

    def _send_again(self, deadline: float) -> None:
        lost, port, states, masks = self._connection, self._port, self.states, self.masks
        self._take_slot(self._client._connect(lost, deadline), deadline)
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


def is_lost(client: Client, connection: Connection) -> bool:
    """Whether this segment will never be served again: its server left on purpose, or is dead and replaced.

    False where the name cannot be looked at: the segment may still be the one behind it.
    """
    if connection.segment.service_closed:
        return True
    try:
        return inode_of(client._path) != connection.inode and not connection.is_served
    except SegmentError:
        return False


def _too_late(client: Client, connection: Connection, rows: int) -> Exception:
    owner = _core.identity_pid(connection.segment.service_owner)
    if not connection.is_served:
        return ServerGone(f"the server of {client.name!r} (process {owner}) died and was not restarted in time")
    return TimeoutError(f"service {client.name!r} (process {owner}) did not answer {rows} rows in time")


def _slice_ms(left_s: float) -> float:
    """How long to wait before looking whether the server is still there."""
    return min(max(left_s * 1e3, 0.0), SLICE_MS)


def unpickled(name: str, spin_us: float | None) -> Client:
    client = Client.__new__(Client)
    client._prepare(name, spin_us)
    return client


def _after_fork() -> None:
    for client in list(Client._all):
        client._connection = None  # the blocks are the parent's
        client._pending = weakref.WeakSet()
        client._lock = threading.Lock()  # another thread of it may have held this one


os.register_at_fork(after_in_child=_after_fork)
