"""A program's side of an inference service: rows in, answers out. Needs numpy, never torch.

A request is copied into a block of the service's shared memory and its answer copied out of it
(csrc/client.h, without the GIL). This module finds the service, splits large requests, and asks again
where a server was replaced. Read next: server.py.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.config import cores
from shmzero.errors import SegmentCorrupt, ServerGone
from shmzero.segment import find_service, inode_of, service_path

MOST_PORTS = 16
"""Requests that one client has in flight at most; further threads wait."""
IDLE_PORTS = 4
"""Blocks that a client keeps for its next requests."""
SLICE_MS = 100.0
"""How long to wait for an answer before looking whether the server is still there."""
LOOK_S = 0.02
"""Between two looks for a server, or for a free block."""

Answer = tuple[NDArray[np.float32], NDArray[np.float32], int]


class _Connection:
    """A mapped segment and the blocks in it that this process has claimed."""

    def __init__(self, segment: _core.Segment, inode: int) -> None:
        self.segment = segment
        self.inode = inode
        self._identity = _core.process_identity(os.getpid())
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
        return not self.segment.service_closed and _core.is_alive(self.segment.service_owner)

    def try_acquire(self) -> _core.RequestPort | None:
        """A port whose slot is free, if there is one now."""
        try:
            return self._idle.pop()  # one bytecode: no lock
        except IndexError:
            pass
        with self._changed:
            if self._num_ports >= MOST_PORTS:
                return None
            port = _core.RequestPort.claim(self.segment, self._identity)
            if port is not None:
                self._num_ports += 1
            return port

    def wait_for_port(self, seconds: float) -> None:
        with self._changed:
            self._num_waiting += 1
            if not self._idle:
                self._changed.wait(seconds)
            self._num_waiting -= 1

    def release(self, port: _core.RequestPort) -> None:
        """Take back a port whose slot is free."""
        if len(self._idle) < IDLE_PORTS:
            self._idle.append(port)
        else:
            self.forget(port)
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


class Client:
    """Evaluates rows on a service, from any thread of any process of this machine.

    Pickles as its name; the child of a fork attaches anew. Raises in every call: ValueError for
    wrong shapes and for states that are not finite, TimeoutError after `timeout` seconds,
    ModelFailed with the server's message, ServerGone where the server has left, or died and was not
    restarted within the time-out.
    """

    _all: ClassVar[weakref.WeakSet[Client]] = weakref.WeakSet()

    def __init__(self, name: str, *, connect_timeout: float = 10.0, spin_us: float | None = None) -> None:
        """Waits up to `connect_timeout` seconds for a server of that name; then raises ServerGone.

        spin_us: how long a call spins at most before it sleeps (default: 50 where there is more than one
        core); spins that are in vain, because processes outnumber cores, shorten the next ones.
        """
        self._prepare(name, spin_us)
        self._connect(None, time.monotonic() + connect_timeout)

    def _prepare(self, name: str, spin_us: float | None) -> None:
        self.name = name
        self.version = 0
        """Of the weights that gave the last answer; of a split request the oldest."""
        self._path = service_path(name)
        self._given_spin_us = spin_us
        self._spin_us = (50.0 if cores() > 1 else 0.0) if spin_us is None else spin_us
        self._connection: _Connection | None = None
        self._widths: tuple[int, int, int, str] | None = None
        self._refusal = ""
        self._lock = threading.Lock()
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
        """Rows that travel together; requests of more are split."""
        return self._connected().segment.rows_per_slot

    # --- calls ----------------------------------------------------------------------------------------

    def evaluate(self, state: Any, mask: Any, timeout: float = 30.0) -> tuple[Any, Any]:
        """(policy [A], value [V]) of one state [S] and its mask bool [A], in the input's kind."""
        connection = self._connection or self._connected(timeout)
        rows, bools, like = _arrays(state, mask, connection.segment, 1)
        policy, value, self.version = self._call(connection, rows, bools, timeout)
        return (policy, value) if like is None else (_as_torch(policy, like), _as_torch(value, like))

    def evaluate_many(self, states: Any, masks: Any, timeout: float = 30.0) -> tuple[Any, Any]:
        """(policies [n, A], values [n, V]) of states [n, S] and masks bool [n, A].

        Stacked arrays or sequences of rows, numpy or torch; the answer is of the input's kind and order.
        """
        connection = self._connection or self._connected(timeout)
        rows, bools, like = _arrays(states, masks, connection.segment, 2)
        if not 0 < len(rows) <= connection.segment.rows_per_slot:
            return PendingRequest(self, connection, rows, bools, like).result(timeout)
        policies, values, self.version = self._call(connection, rows, bools, timeout)
        return (policies, values) if like is None else (_as_torch(policies, like), _as_torch(values, like))

    def submit_many(self, states: Any, masks: Any) -> PendingRequest:
        """Send rows and return at once; `result(timeout)` of what is returned waits for the answer.

        Rows of more than one slot are sent as slots become free, at the latest in `result`.
        """
        connection = self._connected()
        rows, bools, like = _arrays(states, masks, connection.segment, 2)
        return PendingRequest(self, connection, rows, bools, like)

    def request(self, rows: int, timeout: float = 30.0) -> SlotRequest:
        """`with client.request(rows) as r:` gives the slot itself, without a copy: see SlotRequest.

        `rows` is at most `max_rows`; waits up to `timeout` seconds for a slot.
        """
        return SlotRequest(self, rows, timeout)

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
        return _unpickled, (self.name, self._given_spin_us)

    # --- finding the server ---------------------------------------------------------------------------

    def _connected(self, timeout: float = 30.0) -> _Connection:
        connection = self._connection
        return self._connect(None, time.monotonic() + timeout) if connection is None else connection

    def _find(self) -> _Connection | None:
        """A connection to whoever serves the name now."""
        try:
            found = find_service(self.name)
        except SegmentCorrupt as error:
            self._refusal = f" (there is a {error})"  # in the making, or nobody's, or another container's
            return None
        self._refusal = ""
        if found is None:
            return None
        connection = _Connection(*found)
        return connection if connection.is_served else None

    def _connect(self, lost: _Connection | None, deadline: float) -> _Connection:
        """The connection that takes the place of `lost`; waits for it.

        Raises ServerGone at the deadline, or at once where the lost server has left on purpose.
        """
        with self._lock:
            while self._connection is lost:
                found = self._find()
                if found is not None:
                    if self._widths not in (None, found.widths):
                        raise ServerGone(
                            f"service {self.name!r} came back with other widths (state, action, value, wire): "
                            f"{found.widths} instead of {self._widths}; make a new Client"
                        )
                    self._widths = found.widths
                    self._connection = found
                elif lost is not None and lost.segment.service_closed:
                    self._connection = None
                    raise ServerGone(f"service {self.name!r} has been closed by its server")
                elif time.monotonic() >= deadline:
                    raise ServerGone(
                        f"nobody serves {self.name!r}{self._refusal}; start python -m shmzero.serve --name {self.name}"
                    )
                else:
                    time.sleep(LOOK_S)
            if self._connection is None:
                raise ServerGone(f"service {self.name!r} has been closed by its server")
            return self._connection

    # --- one request ----------------------------------------------------------------------------------

    def _acquire(self, connection: _Connection, deadline: float) -> tuple[_Connection, _core.RequestPort]:
        """A port to send with, of this connection or the one that takes its place."""
        while True:
            port = connection.try_acquire()
            if port is not None:
                return connection, port
            if connection.segment.service_closed or not connection.is_served:
                connection = self._connect(connection, deadline)
            elif time.monotonic() >= deadline:
                raise TimeoutError(
                    f"service {self.name!r} had no free slot within the time-out; "
                    f"all {connection.segment.num_workers} are in use: start it with more --slots"
                )
            else:
                connection.wait_for_port(LOOK_S)

    def _call(self, connection: _Connection, states: NDArray[Any], masks: NDArray[np.bool_], timeout: float) -> Answer:
        """Rows of one slot, there and back. The straight path is one call of the core."""
        port = connection.try_acquire()
        if port is None:
            connection, port = self._acquire(connection, time.monotonic() + timeout)
            if states.ndim == 2 and len(states) > connection.segment.rows_per_slot:  # a successor's
                connection.release(port)
                request = PendingRequest(self, connection, states, masks, None)
                return *request.result(timeout), request.version
        start = time.monotonic()
        try:
            answer = port.call(states, masks, min(timeout * 1e3, SLICE_MS), self._spin_us)
        except (ValueError, RuntimeError):
            connection.release(port)
            raise
        except BaseException:
            _give_up(connection, port)
            raise
        if answer is None:
            piece = _Piece(self, states, masks)
            piece.connection, piece.port = connection, port
            return piece.finish(start + timeout)
        connection.release(port)
        return answer


class _Piece:
    """Rows of one slot on their way, with what it takes to send them again."""

    def __init__(self, client: Client, states: NDArray[Any], masks: NDArray[np.bool_]) -> None:
        self.client = client
        self.states = states
        self.masks = masks
        self.connection: _Connection | None = None
        self.port: _core.RequestPort | None = None

    @property
    def num_rows(self) -> int:
        return len(self.states) if self.states.ndim == 2 else 1

    def send(self, connection: _Connection, port: _core.RequestPort) -> None:
        self.connection, self.port = connection, port
        try:
            if self.num_rows > connection.segment.rows_per_slot:
                raise ServerGone(f"service {self.client.name!r} came back with smaller slots; ask again")
            port.submit(self.states, self.masks)
        except BaseException:
            self.drop()
            raise

    def finish(self, deadline: float) -> Answer:
        """Wait for the answer; where the server is replaced, ask its successor."""
        try:
            while True:
                assert self.connection is not None and self.port is not None
                left = deadline - time.monotonic()
                if self.port.wait(min(max(left, 0.0) * 1e3, SLICE_MS), self.client._spin_us):
                    return self._take()
                if (answer := self._look(deadline, expired=left <= 0)) is not None:
                    return answer
        except BaseException:
            self.drop()
            raise

    def _take(self) -> Answer:
        connection, port = self.connection, self.port
        assert connection is not None and port is not None
        self.connection = self.port = None
        try:
            return port.take(self.num_rows, self.states.ndim == 1)
        finally:
            connection.release(port)

    def _look(self, deadline: float, expired: bool) -> Answer | None:
        """Without an answer: is somebody there, and is it still the one we asked?"""
        connection = self.connection
        assert connection is not None
        if _is_lost(self.client, connection):
            self.drop()
            successor = self.client._connect(connection, deadline)
            if self.num_rows > successor.segment.rows_per_slot:  # smaller slots than before
                request = PendingRequest(self.client, successor, self.states, self.masks, None)
                policies, values = request.result(deadline - time.monotonic())
                return policies, values, request.version
            self.send(*self.client._acquire(successor, deadline))
        elif expired:
            raise _too_late(self.client, connection, self.num_rows)
        return None

    def drop(self) -> None:
        """Give the request up, if it is out."""
        if self.connection is not None and self.port is not None:
            _give_up(self.connection, self.port)
        self.connection = self.port = None


class PendingRequest:
    """Rows on their way to a service. Dropping it gives the request up."""

    def __init__(
        self, client: Client, connection: _Connection, states: NDArray[Any], masks: NDArray[np.bool_], like: Any
    ) -> None:
        self.version = 0
        """Of the oldest weights that answered a row, once there is a result."""
        self._client = client
        self._connection = connection
        self._like = like
        self._pid = os.getpid()
        most = connection.segment.rows_per_slot
        self._waiting = deque(
            _Piece(client, states[at : at + most], masks[at : at + most]) for at in range(0, len(states), most)
        )
        self._sent: deque[_Piece] = deque()
        self._answers: list[Answer] = []
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._send()

    def result(self, timeout: float = 30.0) -> tuple[Any, Any]:
        """(policies [n, A], values [n, V]), in the order of the rows. Raises as the client's calls do."""
        if self._pid != os.getpid():
            raise RuntimeError(f"this request belongs to process {self._pid}, of which this one is a fork")
        deadline = time.monotonic() + timeout
        with self._lock:
            if self._error is not None:
                raise self._error
            try:
                while self._waiting or self._sent:
                    self._connection = self._client._connection or self._connection
                    if not self._sent:  # holding no slot: only then may it wait for one
                        self._sent.append(self._waiting.popleft())
                        self._sent[-1].send(*self._client._acquire(self._connection, deadline))
                    self._send()
                    self._answers.append(self._sent[0].finish(deadline))
                    self._sent.popleft()
            except BaseException as error:
                self._error = error
                self._drop()
                raise
            return self._joined()

    def _send(self) -> None:
        """As many pieces as there are free slots."""
        while self._waiting and (port := self._connection.try_acquire()) is not None:
            self._sent.append(self._waiting.popleft())
            self._sent[-1].send(self._connection, port)

    def _joined(self) -> tuple[Any, Any]:
        segment = self._connection.segment
        if self._answers:
            policies = np.concatenate([answer[0] for answer in self._answers])
            values = np.concatenate([answer[1] for answer in self._answers])
            self.version = self._client.version = min(answer[2] for answer in self._answers)
        else:
            policies = np.empty((0, segment.action_dim), np.float32)
            values = np.empty((0, segment.value_dim), np.float32)
        if self._like is None:
            return policies, values
        return _as_torch(policies, self._like), _as_torch(values, self._like)

    def _drop(self) -> None:
        self._waiting.clear()
        while self._sent:
            self._sent.popleft().drop()

    def __del__(self) -> None:
        if self._pid == os.getpid():
            self._drop()


class SlotRequest(AbstractContextManager["SlotRequest"]):
    """The slot itself: fill `states` and `masks`, `run()`, read `policies` and `values`.

    The arrays are views of shared memory, valid until the `with` block ends, and after `run` only
    those that it leaves: where a server was replaced meanwhile, the rows lie in another slot.
    """

    states: NDArray[Any]
    """[rows, S] of the wire's type."""
    masks: NDArray[np.uint64]
    """[rows, ceil(A / 64)] legal actions as bits; `pack_masks` makes them out of bools."""
    policies: NDArray[np.float32]
    """[rows, A]"""
    values: NDArray[np.float32]
    """[rows, V]"""

    def __init__(self, client: Client, rows: int, timeout: float) -> None:
        connection = client._connected(timeout)
        if not 1 <= rows <= connection.segment.rows_per_slot:
            raise ValueError(f"rows is {rows}; a slot of service {client.name!r} holds 1..{client.max_rows}")
        self.version = 0
        self._client = client
        self._rows = rows
        self._connection, self._port = client._acquire(connection, time.monotonic() + timeout)
        self._port.begin()
        self._view()

    @staticmethod
    def pack_masks(masks: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """uint64 [n, ceil(A / 64)] out of bool [n, A]."""
        return _core.pack_masks(np.ascontiguousarray(masks, np.bool_))

    def _view(self) -> None:
        states, masks, policies, values = _core.slot_views(self._connection.segment, self._port.block, 0)
        self.states, self.masks = states[: self._rows], masks[: self._rows]
        self.policies, self.values = policies[: self._rows], values[: self._rows]

    def run(self, timeout: float = 30.0) -> None:
        """Send the rows and wait until policies and values are there.

        Once only: RuntimeError the second time. Raises as the client's calls do.
        """
        deadline = time.monotonic() + timeout
        self._port.publish(self._rows)
        while True:
            left = deadline - time.monotonic()
            if self._port.wait(min(max(left, 0.0) * 1e3, SLICE_MS), self._client._spin_us):
                break
            if _is_lost(self._client, self._connection):
                self._send_again(deadline)
            elif left <= 0:
                raise _too_late(self._client, self._connection, self._rows)
        self._port.check_answer()
        self.version = self._client.version = self._port.version

    def _send_again(self, deadline: float) -> None:
        lost, port, states, masks = self._connection, self._port, self.states, self.masks
        successor = self._client._connect(lost, deadline)
        if self._rows > successor.segment.rows_per_slot:
            raise ServerGone(f"service {self._client.name!r} came back with smaller slots; ask again")
        self._connection, self._port = self._client._acquire(successor, deadline)
        self._port.begin()
        self._view()
        self.states[:], self.masks[:] = states, masks
        _give_up(lost, port)
        self._port.publish(self._rows)

    def __exit__(self, *exception: object) -> None:
        _give_up(self._connection, self._port)
        del self.states, self.masks, self.policies, self.values, self._port  # somebody else's from now on


def _is_lost(client: Client, connection: _Connection) -> bool:
    """Whether this segment will never be served again: left on purpose, or dead and replaced."""
    if connection.segment.service_closed:
        return True
    return inode_of(client._path) != connection.inode and not connection.is_served


def _too_late(client: Client, connection: _Connection, rows: int) -> Exception:
    owner = _core.identity_pid(connection.segment.service_owner)
    if not connection.is_served:
        return ServerGone(f"the server of {client.name!r} (process {owner}) died and was not restarted in time")
    return TimeoutError(f"service {client.name!r} (process {owner}) did not answer {rows} rows in time")


def _give_up(connection: _Connection, port: _core.RequestPort) -> None:
    if port.cancel():
        connection.release(port)
    else:
        connection.forget(port)  # the server's until it has done with it; then anybody's


def _arrays(states: Any, masks: Any, segment: _core.Segment, ndim: int) -> tuple[NDArray[Any], NDArray[np.bool_], Any]:
    """Rows as the slot takes them, and the tensor that the answers shall be like (None: numpy)."""
    states, like = _untorched(states)
    masks, _ = _untorched(masks)
    with np.errstate(over="ignore"):  # beyond float16: infinite, and refused as such
        rows = np.ascontiguousarray(states, segment.wire)
    bools = np.asarray(masks)
    if bools.dtype != np.bool_:
        if bools.dtype.kind not in "iu" and bools.size:
            raise ValueError(f"masks has dtype {bools.dtype}; allowed: bool, or integers 0 and 1")
        bools = bools != 0
    bools = np.ascontiguousarray(bools)
    if ndim == 2 and len(rows) == 0 == len(bools):
        rows, bools = np.empty((0, segment.state_dim)), np.empty((0, segment.action_dim), np.bool_)
    if rows.ndim != ndim or rows.shape[-1] != segment.state_dim:
        wanted = f"[n, {segment.state_dim}]" if ndim == 2 else f"[{segment.state_dim}]"
        raise ValueError(f"states has shape {list(rows.shape)}; the service takes {wanted}")
    if bools.shape != (*rows.shape[:-1], segment.action_dim):
        raise ValueError(
            f"masks has shape {list(bools.shape)}; these states need {[*rows.shape[:-1], segment.action_dim]}"
        )
    return rows, bools, like


def _untorched(given: Any) -> tuple[Any, Any]:
    """(what numpy understands, the tensor it was or None). Imports no torch: without it nothing is a tensor."""
    torch = sys.modules.get("torch")
    if torch is None or type(given) is np.ndarray:
        return given, None
    if isinstance(given, Sequence) and len(given) > 0 and isinstance(given[0], torch.Tensor):
        given = torch.stack(list(given))
    if not isinstance(given, torch.Tensor):
        return given, None
    tensor = given.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()  # numpy has no such type
    return tensor.cpu().numpy(), given


def _as_torch(array: NDArray[np.float32], like: Any) -> Any:
    tensor = sys.modules["torch"].from_numpy(array)
    return tensor.to(like.device)


def _unpickled(name: str, spin_us: float | None) -> Client:
    client = Client.__new__(Client)
    client._prepare(name, spin_us)
    return client


def _after_fork() -> None:
    for client in list(Client._all):
        client._connection = None  # the blocks are the parent's
        client._lock = threading.Lock()  # another thread of it may have held this one


os.register_at_fork(after_in_child=_after_fork)
