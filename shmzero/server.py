"""InferenceServer: a model behind a named service, in a thread of this process; BatchedEvaluator: the same
for the threads of one process, without a name.

The serving loop is inference.serve, the same as the engine's. A second thread is the reaper: it frees
the blocks of clients that died. Read next: client.py (the other side), model.py (what runs batches).
"""

from __future__ import annotations

import errno
import os
import resource
import select
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from shmzero import _core
from shmzero.client import Client
from shmzero.config import check_choice, check_service, check_whole, cores, seconds
from shmzero.connection import Connection
from shmzero.errors import ConfigError, ModelFailed, ServerGone
from shmzero.evaluators import BatchDevice
from shmzero.model import device_of
from shmzero.segment import (
    PrivateSegment,
    ServiceSegment,
    create_private,
    service_path,
    sweep_leftovers,
    unnamed_service,
)

LOOK_MS = 50
"""How often the reaper looks for clients that it has not seen."""
POLL_S = 0.5
"""How often it looks at clients that it has no descriptor for."""


class _Control:
    """What the serving loop reads and tells, for other threads of its process."""

    def __init__(self, version: int) -> None:
        self.closed = False
        self.version = version
        """The version of the weights being served."""
        self.failures = 0
        self.last_failure = ""
        self.events: deque[str] = deque(maxlen=100)
        self._command: dict[str, Any] | None = None
        self._last_version = version  # the last one that a swap has been given
        self._outcome = (version, "")  # the last swap that the loop has done: its version and what was wrong
        self._is_swapping = False  # for one swap at a time; guarded by `_done`
        self._done = threading.Condition()

    def commands(self) -> list[dict[str, Any]]:
        if self._command is None:
            return []
        with self._done:
            command, self._command = self._command, None
        return [] if command is None else [command]

    def failed(self, error: ModelFailed) -> None:
        self.failures += 1
        self.last_failure = str(error)

    def send(self, **event: Any) -> None:
        if event["event"] == "compiled":
            self.events.append(event["message"])
            return
        with self._done:
            if event["event"] == "weights":
                self.version = event["version"]
            self._outcome = (event["version"], event.get("message", ""))
            self._done.notify_all()

    def swap(self, weights: Any, timeout: float) -> int:
        """Wait until the loop has taken the weights up; return their version.

        Raises ConfigError, TimeoutError or ServerGone. After a TimeoutError the weights may still be taken up, where
        the loop was at it. No other swap gets their version.
        """
        end = time.monotonic() + timeout
        late = TimeoutError(f"weights were not taken up within {timeout:g} s: a batch or a swap is still running")
        with self._done:
            while self._is_swapping:
                if time.monotonic() >= end:
                    raise late
                self._done.wait(min(0.1, max(end - time.monotonic(), 0.0)))
            try:
                self._is_swapping = True
                self._last_version += 1
                self._command = {"cmd": "weights", "weights": weights, "version": self._last_version}
                while self._outcome[0] != self._last_version:
                    if self.closed:
                        raise ServerGone("the server has been closed")
                    if time.monotonic() >= end:
                        if self._command is not None:  # the loop has not begun: the swap is withdrawn
                            self._command = None
                            self._last_version -= 1
                        raise late
                    self._done.wait(min(0.1, max(end - time.monotonic(), 0.0)))
                if message := self._outcome[1]:
                    self._last_version -= 1
                    self._outcome = (self._last_version, "")
                    raise ConfigError(message)
                return self._last_version
            finally:
                self._is_swapping = False
                self._done.notify_all()


class _Reaper:
    """Frees the blocks of clients that are certainly dead. One that cannot be looked at is alive.

    Deaths come by pidfd, where the kernel has it, in at most half of the descriptors that this process may
    have: the program around us needs some as well. Clients beyond these are looked at every POLL_S.
    """

    def __init__(self, segment: _core.Segment, say: Callable[[str], object]) -> None:
        self._segment = segment
        self._say = say
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = sys.maxsize if self._limit == resource.RLIM_INFINITY else self._limit // 2
        self._pidfds: dict[int, int] = {}
        self._poll = select.poll()
        self._polled: set[int] = set()
        self._poll_at = 0.0
        self._has_said = False
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
        if is_short and not self._has_said:
            self._has_said = True
            self._say(
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
        """A descriptor that makes room for a look at a process where there is no other."""
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


class _Service:
    """Two threads over a segment: the serving loop and the reaper."""

    def __init__(
        self, memory: ServiceSegment | PrivateSegment, epoch: int, device: BatchDevice, version: int,
        timeout_ms: float, spin_us: float, check_finite: bool,
    ) -> None:  # fmt: skip
        from shmzero.inference import serve  # here, as `python -m shmzero.inference` imports the package first

        self.pid = os.getpid()
        self.segment = segment = memory.segment
        self.error: BaseException | None = None
        self.control = _Control(version)
        self._memory = memory
        self._memory_lock = threading.Lock()  # the first of both threads that fails closes it
        self._has_memory = True
        self._reaper = _Reaper(segment, self.control.events.append)
        self._reaper.look(0)  # what a dead predecessor's clients left, before anything is served
        port = _core.ServerPort(segment, 0, epoch, adaptive_spin=True, clients=True)
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(serve, port, device, self.control, version, timeout_ms, spin_us, check_finite),
                name="shmzero-serve",
                daemon=True,
            ),
            threading.Thread(target=self._run, args=(self._reap,), name="shmzero-reaper", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, body: Any, *args: Any) -> None:
        try:
            body(*args)
        except BaseException as error:  # the entry point of a thread; `error` is what its owner sees
            self.error = error
            self.control.last_failure = "".join(traceback.format_exception(error))
            self.control.closed = True
            self._close_memory()  # another server may have the name at once

    def _reap(self) -> None:
        while not self.control.closed:
            self._reaper.look(LOOK_MS)

    def stop(self) -> None:
        """Finish the batches at hand, end the threads, tell the clients."""
        self.control.closed = True
        for thread in self._threads:
            thread.join()
        self._reaper.close()
        self._close_memory()

    def _close_memory(self) -> None:
        """Tell the clients, give the name back; what is mapped stays."""
        with self._memory_lock:
            if self._has_memory:
                self._has_memory = False
                self.segment.close_service()
                self._memory.close()

    def stats(self) -> dict[str, Any]:
        counters = self.segment.server_counters(0)
        waits = counters["waits"]
        return {
            "rows": counters["rows"],
            "batches": counters["batches"],
            "requests": sum(waits),
            "failures": self.control.failures,
            "refused": counters["refused"],
            "clients": len(set(self.segment.owners())),
            "version": self.control.version,
            "wait_p50_us": percentile_us(waits, 0.50),
            "wait_p99_us": percentile_us(waits, 0.99),
            "batch_histogram": {2**i: n for i, n in enumerate(counters["histogram"]) if n},
            "waits": waits,
        }


def percentile_us(waits: list[int], share: float) -> float:
    """The upper end of the bin in which so large a share of the waiting times lies; 0 without any."""
    left = share * sum(waits)
    for bin_, count in enumerate(waits):
        left -= count
        if count and left <= 0:
            return _core.WAIT_BINS_NS[min(bin_ + 1, len(waits) - 1)] / 1000
    return 0.0


def check_sizes(slots: int, rows_per_slot: int, state_dim: int, action_dim: int, value_dim: int, wire: str) -> None:
    """Raises ConfigError for sizes that no segment has."""
    check_service("slots", slots)
    check_service("rows_per_slot", rows_per_slot)
    for name, value in (("state_dim", state_dim), ("action_dim", action_dim), ("value_dim", value_dim)):
        check_whole(name, value, 1, 2**20)
    check_choice("wire", wire, ("float32", "float16"))
    try:
        _core.segment_bytes(1, slots, 1, rows_per_slot, state_dim, action_dim, value_dim, wire)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_times(max_batch: int, timeout_ms: float, spin_us: float | None) -> None:
    """Raises ConfigError for a batch or times that a service cannot have."""
    for name, value in (("max_batch", max_batch), ("timeout_ms", timeout_ms), ("spin_us", spin_us)):
        check_service(name, value)


def _spin(spin_us: float | None) -> float:
    return (50.0 if cores() > 1 else 0.0) if spin_us is None else spin_us


def _end(service: _Service) -> None:
    if service.pid == os.getpid():  # in the child of a fork it is the parent's
        service.stop()


class InferenceServer:
    """Serves a model to every process of this user and machine, from a thread of this process.

    model: a torch module that maps (states f32 [B, S], masks bool [B, A]) to (policies [B, A], values
    [B, V]); or a function of numpy arrays that does; or a BatchDevice. It may also return a list, a
    longer tuple, of which the first two count, or a dict with `policy` and `value`. It answers a row that
    the server makes up before it serves.
    copy: serve a copy of a module. With False the module itself is served: it is moved to the device and
    put into evaluation mode, a swap copies weights into it, and it must not be trained meanwhile.
    grad: a module may take gradients within a call (torch.autograd.grad); its answers are detached.
    check_finite: a request whose answer holds NaN or infinity raises ModelFailed; False hands such answers
    out. The policy of a row without a legal action, which asks for its value alone, is zeros then.
    A request is in one slot; `slots` is how many there may be at once over all clients. A restart under
    the same name and sizes takes over the requests that a dead predecessor left. Where none will follow,
    `rm /dev/shm/shmzero-NAME` frees its memory; what was served without a name goes with the next start.

    Raises ConfigError where a living server or another user has the name, the module cannot be copied or
    moved to the device, or it does not answer in these widths; SegmentError where /dev/shm has no room,
    cannot be written to or is not there.
    """

    def __init__(
        self,
        model: Any,
        state_dim: int = _core.NUM_FEATURES,
        action_dim: int = _core.NUM_ACTIONS,
        value_dim: int = 1,
        *,
        device: str = "auto",
        name: str | None = None,
        wire: str = "float32",
        max_batch: int = 1024,
        slots: int = 128,
        rows_per_slot: int = 128,
        timeout_ms: float = 2.0,
        spin_us: float | None = None,
        copy: bool = True,
        grad: bool = False,
        check_finite: bool = True,
    ) -> None:
        self.name = unnamed_service() if name is None else name
        service_path(self.name)  # a name that cannot be is refused before the model is looked at
        check_times(max_batch, timeout_ms, spin_us)
        check_sizes(slots, rows_per_slot, state_dim, action_dim, value_dim, wire)
        self.device = device_of(model, state_dim, action_dim, value_dim, wire, max_batch, device, copy, grad)
        sweep_leftovers()
        self._memory = ServiceSegment(self.name, slots, rows_per_slot, state_dim, action_dim, value_dim, wire)
        try:
            self._service = _Service(
                self._memory,
                self._memory.epoch,
                self.device,
                self._memory.first_version,
                timeout_ms,
                _spin(spin_us),
                check_finite,
            )
        except BaseException:
            self._memory.close()
            raise
        self._end = weakref.finalize(self, _end, self._service)  # also at the program's end

    @property
    def version(self) -> int:
        """The version of the weights being served. It grows with each swap. A server that follows on one that died
        begins above whatever that one answered with; after one that closed, which leaves nothing, it begins at 0."""
        return self._service.control.version

    @property
    def error(self) -> BaseException | None:
        """The error that ended the server, or None."""
        return self._service.error

    @property
    def last_failure(self) -> str:
        """What the model raised last, or the traceback of `error`."""
        return self._service.control.last_failure

    @property
    def events(self) -> deque[str]:
        """Lines about what happened, the newest 100; whoever shows them takes them out."""
        return self._service.control.events

    def client(self) -> Client:
        """A client of this server."""
        return Client(self.name)

    def swap(self, weights: Any, timeout: float | None = 60.0) -> int:
        """Serve other weights from the next batch on; returns their version once they are taken up.

        weights: the path of a .safetensors file, a state_dict, a module of the same kind, or, where the
        model is a function, another function. Raises ConfigError, and the old stay, for what does not fit
        and where the module then does not answer made-up rows as a new module does by itself, as one that
        is frozen would not; of a file or a state_dict only a swap that changes no answer can be told. A
        module whose answers differ from call to call is not compared.
        Raises TimeoutError where they were not taken up in time: they are withdrawn then, unless the
        server was at it, which `version` will tell.
        """
        return self._service.control.swap(weights, seconds("timeout", timeout))

    def stats(self) -> dict[str, Any]:
        """Sums since the segment was made: rows, batches, requests, clients, waiting times (to 19 %)."""
        return self._service.stats()

    def close(self) -> None:
        """Leave: finish the batches at hand, tell the clients, remove the name."""
        self._end()

    def __enter__(self) -> InferenceServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class BatchedEvaluator(Client):
    """Puts the rows of a process's threads together into batches: Client's calls, without a service.

    The arguments are InferenceServer's. Threads meet in slots of private memory under the same firing
    rules. Belongs to one process: it cannot be pickled, and the child of a fork gets ServerGone. Needs no
    /dev/shm. Raises SegmentError where there is too little memory.
    """

    def __init__(
        self,
        model: Any,
        state_dim: int = _core.NUM_FEATURES,
        action_dim: int = _core.NUM_ACTIONS,
        value_dim: int = 1,
        *,
        device: str = "auto",
        wire: str = "float32",
        max_batch: int = 1024,
        slots: int = 16,
        rows_per_slot: int = 256,
        timeout_ms: float = 2.0,
        spin_us: float | None = None,
        copy: bool = True,
        grad: bool = False,
        check_finite: bool = True,
    ) -> None:
        self._prepare(unnamed_service(), spin_us)
        check_times(max_batch, timeout_ms, spin_us)
        check_sizes(slots, rows_per_slot, state_dim, action_dim, value_dim, wire)
        served = device_of(model, state_dim, action_dim, value_dim, wire, max_batch, device, copy, grad)
        self._memory = create_private(1, slots, 1, rows_per_slot, state_dim, action_dim, value_dim, wire)
        segment = self._memory.segment
        epoch = segment.open_service(_core.own_identity())
        self._service = _Service(self._memory, epoch, served, 0, timeout_ms, _spin(spin_us), check_finite)
        self._end = weakref.finalize(self, _end, self._service)
        self._connect(None, time.monotonic())

    def _find(self) -> Connection | None:
        if self._service.pid != os.getpid():
            raise ServerGone(f"this evaluator belongs to process {self._service.pid}, of which this one is a fork")
        if self._service.segment.service_closed:
            raise ServerGone("this evaluator has been closed, or its thread has ended")
        return Connection(self._service.segment, os.fstat(self._memory.fd).st_ino)

    def swap(self, weights: Any, timeout: float | None = 60.0) -> int:
        """Does what InferenceServer.swap does."""
        return self._service.control.swap(weights, seconds("timeout", timeout))

    def stats(self) -> dict[str, Any]:
        """Returns what InferenceServer.stats returns."""
        return self._service.stats()

    def close(self) -> None:
        """End the threads. Every further call raises ServerGone."""
        super().close()
        self._end()

    def __enter__(self) -> BatchedEvaluator:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a BatchedEvaluator belongs to its process; use InferenceServer and Client instead")
