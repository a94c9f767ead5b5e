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
from shmzero.errors import ModelFailed, SegmentCorrupt, ServerGone
from shmzero.segment import find_service, inode_of, service_path

MOST_PORTS = 16
"""Requests that one client has in flight at most; further threads wait."""
SLICE_MS = 100.0
"""How long to wait for an answer before looking whether the server is still there."""
LOOK_S = 0.02
"""Between two looks for a server, or for a free block."""

Answer = tuple[NDArray[np.float32], NDArray[np.float32], int]


class _Connection:
    """A mapped segment and the blocks in it that this process has claimed.

    Between two requests a block rests: it is taken up again, unless another client needed it meanwhile.
    """

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


class Client:
    """Evaluates rows on a service, from any thread of any process of this machine.

    Pickles as its name; the child of a fork attaches anew. Raises in every call: ValueError for
    wrong shapes and for states that are not finite, TimeoutError after `timeout` seconds,
    ModelFailed with the server's message, ServerGone where nobody serves the name by then. `timeout`
    is for all that a call waits for; a server that is started meanwhile answers it.
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
        self._pending: weakref.WeakSet[PendingRequest] = weakref.WeakSet()
        self._lock = threading.Lock()  # of _connection, _widths and _pending; never held while waiting
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
        deadline = time.monotonic() + timeout
        connection = self._connection or self._connect(None, deadline)
        rows, bools, like = _arrays(state, mask, connection.segment, 1)
        policy, value, self.version = self._call(connection, rows, bools, deadline)
        return (policy, value) if like is None else (_as_torch(policy, like), _as_torch(value, like))

    def evaluate_many(self, states: Any, masks: Any, timeout: float = 30.0) -> tuple[Any, Any]:
        """(policies [n, A], values [n, V]) of states [n, S] and masks bool [n, A].

        Stacked arrays or sequences of rows, numpy or torch; the answer is of the input's kind and order.
        """
        deadline = time.monotonic() + timeout
        connection = self._connection or self._connect(None, deadline)
        rows, bools, like = _arrays(states, masks, connection.segment, 2)
        if not 0 < len(rows) <= connection.segment.rows_per_slot:
            return PendingRequest(self, connection, rows, bools, like)._result(deadline)
        policies, values, self.version = self._call(connection, rows, bools, deadline)
        return (policies, values) if like is None else (_as_torch(policies, like), _as_torch(values, like))

    def submit_many(self, states: Any, masks: Any) -> PendingRequest:
        """Send rows and return at once; `result(timeout)` of what is returned waits for the answer.

        Rows of more than one slot are sent as slots become free, at the latest in `result`. Only a first
        call, which has no server yet, waits for one: up to 30 seconds.
        """
        connection = self._connected()
        rows, bools, like = _arrays(states, masks, connection.segment, 2)
        return PendingRequest(self, connection, rows, bools, like)

    def request(self, rows: int, timeout: float = 30.0) -> SlotRequest:
        """`with client.request(rows) as r:` gives the slot itself, without a copy: see SlotRequest.

        `rows` is at most `max_rows`; the block is entered `timeout` seconds after this call at the latest.
        """
        return SlotRequest(self, rows, time.monotonic() + timeout)

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

    def _connected(self) -> _Connection:
        return self._connection or self._connect(None, time.monotonic() + 30.0)

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

    def _look_up(self, lost: _Connection | None) -> _Connection | None:
        """What another thread has found in place of `lost`, or who serves now. Holding the lock."""
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

    def _acquire(self, connection: _Connection, deadline: float) -> tuple[_Connection, _core.RequestPort]:
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

    def _try_acquire(self, connection: _Connection) -> _core.RequestPort | None:
        """A port, if there is one now or where answers lie about that nobody has asked for yet."""
        port = connection.try_acquire()
        if port is None:
            with self._lock:
                pending = list(self._pending)
            for request in pending:
                request._collect()
            port = connection.try_acquire()
        return port

    def _no_slot(self, connection: _Connection) -> TimeoutError:
        if connection.is_full:
            return TimeoutError(
                f"this client of {self.name!r} has {MOST_PORTS} requests in flight, the most that one client may "
                "have, and none of them was answered within the time-out; a further Client may have as many"
            )
        return TimeoutError(
            f"service {self.name!r} had no free slot within the time-out; "
            f"all {connection.segment.num_workers} are in use: start it with more --slots"
        )

    def _call(self, connection: _Connection, states: NDArray[Any], masks: NDArray[np.bool_], deadline: float) -> Answer:
        """Rows of one slot, there and back. The straight path is one call of the core."""
        port = connection.try_acquire()
        if port is None:
            connection, port = self._acquire(connection, deadline)
            if states.ndim == 2 and len(states) > connection.segment.rows_per_slot:  # a successor's
                connection.release(port)
                request = PendingRequest(self, connection, states, masks, None)
                return *request._result(deadline), request.version
        try:
            answer = port.call(states, masks, _slice_ms(deadline - time.monotonic()), self._spin_us)
        except (ValueError, ModelFailed):
            connection.release(port)
            raise
        except BaseException:
            _give_up(connection, port)
            raise
        if answer is None:
            piece = _Piece(self, states, masks)
            piece.connection, piece.port = connection, port
            try:
                return piece.finish(deadline)
            finally:
                piece.drop()
        connection.release(port)
        return answer


class _Piece:
    """Rows of one slot on their way, with what it takes to send them again."""

    def __init__(self, client: Client, states: NDArray[Any], masks: NDArray[np.bool_]) -> None:
        self.client = client
        self.states = states
        self.masks = masks
        self.connection: _Connection | None = None
        """Where it was sent last; with `port` None it is not there any more."""
        self.port: _core.RequestPort | None = None
        self._answer: Answer | None = None
        self._error: ModelFailed | None = None

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
        """Wait for the answer; where the server is replaced, ask its successor.

        After a TimeoutError the request is still out.
        """
        while self._answer is None:
            if self._error is not None:
                raise self._error
            assert self.connection is not None
            if self.port is None:
                self._send_again(self.connection, deadline)
                continue
            left = deadline - time.monotonic()
            if self.port.wait(_slice_ms(left), self.client._spin_us):
                self.collect()
            elif _is_lost(self.client, self.connection):
                self.drop()
            elif left <= 0:
                raise _too_late(self.client, self.connection, self.num_rows)
        return self._answer

    def collect(self) -> None:
        """Take the answer out of the slot, which is free for others then; if it is there."""
        connection, port = self.connection, self.port
        if connection is None or port is None or not port.answered:
            return
        self.port = None
        try:
            self._answer = port.take(self.num_rows, self.states.ndim == 1)
        except ModelFailed as error:
            self._error = error
        except BaseException:
            _give_up(connection, port)
            raise
        connection.release(port)

    def _send_again(self, lost: _Connection, deadline: float) -> None:
        successor = self.client._connect(lost, deadline)
        if self.num_rows > successor.segment.rows_per_slot:  # smaller slots than before
            request = PendingRequest(self.client, successor, self.states, self.masks, None)
            self._answer = *request._result(deadline), request.version
        else:
            self.send(*self.client._acquire(successor, deadline))

    def drop(self) -> None:
        """Give the request up, if it is out."""
        port, self.port = self.port, None
        if self.connection is not None and port is not None:
            _give_up(self.connection, port)


class PendingRequest:
    """Rows on their way to a service. Dropping it gives the request up; a time-out does not."""

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
        connection.segment.check_finite(states)  # all of them, before any is sent
        self._send()
        with client._lock:
            client._pending.add(self)

    def result(self, timeout: float = 30.0) -> tuple[Any, Any]:
        """(policies [n, A], values [n, V]), in the order of the rows. Raises as the client's calls do.

        After a TimeoutError it may be asked again.
        """
        return self._result(time.monotonic() + timeout)

    def _result(self, deadline: float) -> tuple[Any, Any]:
        if self._pid != os.getpid():
            raise RuntimeError(f"this request belongs to process {self._pid}, of which this one is a fork")
        left = min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=left):  # another thread waits for this result
            raise _too_late(self._client, self._connection, sum(piece.num_rows for piece in self._sent))
        try:
            if self._error is not None:
                raise self._error
            while self._waiting or self._sent:
                self._connection = self._client._connection or self._connection
                if not self._sent:  # holding no slot: only then may it wait for one
                    self._connection, port = self._client._acquire(self._connection, deadline)
                    self._send_next(port)
                self._send()
                self._answers.append(self._sent[0].finish(deadline))
                self._sent.popleft()
            return self._joined()
        except TimeoutError:
            raise
        except BaseException as error:
            self._error = error
            self._drop()
            raise
        finally:
            self._lock.release()

    def _send(self) -> None:
        """As many pieces as there are free slots for them, one where others wait for slots as well."""
        while self._waiting:
            num_out = sum(piece.port is not None for piece in self._sent)
            if num_out >= (1 if self._connection.is_wanted else self._connection.most_pieces):
                return
            port = self._client._try_acquire(self._connection)
            if port is None:
                return
            self._send_next(port)

    def _send_next(self, port: _core.RequestPort) -> None:
        self._sent.append(self._waiting.popleft())
        self._sent[-1].send(self._connection, port)

    def _collect(self) -> None:
        """Take the answers that have come out of their slots, unless another thread is at it."""
        if self._pid == os.getpid() and self._lock.acquire(blocking=False):
            try:
                for piece in self._sent:
                    piece.collect()
            finally:
                self._lock.release()

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

    def __init__(self, client: Client, rows: int, deadline: float) -> None:
        self.version = 0
        self._client = client
        self._rows = rows
        self._deadline = deadline
        self._pid = os.getpid()
        self._connection = client._connection or client._connect(None, deadline)
        self._sent = False
        most = self._connection.segment.rows_per_slot
        if not 1 <= rows <= most:
            raise ValueError(f"rows is {rows}; a slot of service {client.name!r} holds 1..{most}")

    def __enter__(self) -> SlotRequest:
        self._take_slot(self._connection, self._deadline)
        return self

    def _take_slot(self, connection: _Connection, deadline: float) -> None:
        connection, port = self._client._acquire(connection, deadline)
        if self._rows > connection.segment.rows_per_slot:
            connection.release(port)
            raise ServerGone(f"service {self._client.name!r} came back with smaller slots; ask again")
        self._connection, self._port = connection, port
        states, masks, policies, values = _core.slot_views(connection.segment, port.block, 0)
        self.states, self.masks = states[: self._rows], masks[: self._rows]
        self.policies, self.values = policies[: self._rows], values[: self._rows]

    @staticmethod
    def pack_masks(masks: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """uint64 [n, ceil(A / 64)] out of bool [n, A]."""
        return _core.pack_masks(np.ascontiguousarray(masks, np.bool_))

    def run(self, timeout: float = 30.0) -> None:
        """Send the rows and wait until policies and values are there.

        Once only: RuntimeError the second time. Raises as the client's calls do.
        """
        deadline = time.monotonic() + timeout
        if self._sent:
            raise RuntimeError("this request has been sent already")
        self._port.publish(self._rows)
        self._sent = True
        while True:
            left = deadline - time.monotonic()
            if self._port.wait(_slice_ms(left), self._client._spin_us):
                break
            if _is_lost(self._client, self._connection):
                self._send_again(deadline)
            elif left <= 0:
                raise _too_late(self._client, self._connection, self._rows)
        self._port.check_answer()
        self.version = self._client.version = self._port.version

    def _send_again(self, deadline: float) -> None:
        lost, port, states, masks = self._connection, self._port, self.states, self.masks
        self._take_slot(self._client._connect(lost, deadline), deadline)
        self.states[:], self.masks[:] = states, masks
        _give_up(lost, port)
        self._port.publish(self._rows)

    def __exit__(self, *exception: object) -> None:
        if self._pid == os.getpid():  # in the child of a fork it is the parent's
            _give_up(self._connection, self._port)
        del self.states, self.masks, self.policies, self.values, self._port  # somebody else's from now on
        self._sent = False


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


def _slice_ms(left_s: float) -> float:
    """How long to wait before looking whether the server is still there."""
    return min(max(left_s * 1e3, 0.0), SLICE_MS)


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
        client._pending = weakref.WeakSet()
        client._lock = threading.Lock()  # another thread of it may have held this one


os.register_at_fork(after_in_child=_after_fork)
