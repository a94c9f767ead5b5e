"""A fleet of child processes: workers and inference processes around one segment.

The parent grants units, reads finished ones, replaces children that die, and is the reaper of their
slots. Knows nothing of SQLite and terminals; selfplay.py does. Read next: worker.py, inference.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shmzero.config import NETS, OLDER, SelfPlayConfig, cores
from shmzero.errors import ConfigError, WorkerDied
from shmzero.segment import create_private

MOST_DEATHS = 5
DEATH_WINDOW_S = 60.0
"""So many deaths of children in such a time end the run."""
GRANT_UNITS = 512
"""Units in one write: 4096 bytes, which a pipe takes whole or not at all."""
PIPE_BYTES = 1 << 20
MOST_SLOT_ROWS = 1 << 22
LANE_SIMULATIONS = 1 << 22
"""So many simulations the lanes of a run have room for, unless their number is given: one to two GB."""


@dataclass(frozen=True)
class FleetPlan:
    """How many processes, lanes, slots and rows a run has, resolved from settings and machine."""

    devices: list[str]
    workers: int
    lanes: int
    slots: int
    rows_per_slot: int
    max_batch: int
    threads: int
    spin_us: float


def plan_fleet(config: SelfPlayConfig, num_units: int) -> FleetPlan:
    """Sizes for `num_units` units.

    A server has one batch to compute, the workers another to prepare; on CUDA two are in flight.
    """
    devices = config.devices()
    on_cuda = any(name != "cpu" for name in devices)
    max_batch = config.max_batch or (8192 if on_cuda else 1024)
    # Many small slots fill a batch better than few large ones; beyond two workers a server (on CUDA: a
    # core each) more of them bring nothing.
    workers = config.workers or (max(len(devices), min(cores() - 1, 8)) if on_cuda else 2 * len(devices))
    if workers * config.slots < len(devices):
        raise ConfigError(
            f"workers is {workers} with {config.slots} slots each and {len(devices)} inference processes; "
            f"allowed: at least {-(-len(devices) // config.slots)}"
        )
    search = config.search().to_core()
    rows_per_lane = search.rows_per_step(config.play_settings().most_players)
    batches = 3 if on_cuda else 2
    wanted = -(-batches * max_batch * len(devices) // (rows_per_lane * workers))
    wanted = min(wanted, LANE_SIMULATIONS // (workers * max(1, config.search().size())))
    lanes = config.lanes or max(config.slots, wanted)
    lanes = max(1, min(lanes, -(-num_units // workers)))
    rows_per_slot = -(-lanes // config.slots) * rows_per_lane
    if rows_per_slot > MOST_SLOT_ROWS:
        raise ConfigError(
            f"lanes is {lanes} with {rows_per_lane} rows each, {rows_per_slot} in a slot; "
            f"allowed: {MOST_SLOT_ROWS} rows in a slot"
        )
    threads = config.inference_threads or (1 if on_cuda else max(1, cores() // len(devices)))
    spare = cores() - workers - len(devices) * threads
    return FleetPlan(
        devices=devices,
        workers=workers,
        lanes=lanes,
        slots=config.slots,
        rows_per_slot=rows_per_slot,
        max_batch=max_batch,
        threads=threads,
        spin_us=(50.0 if spare > 0 else 0.0) if config.spin_us is None else config.spin_us,
    )


@dataclass
class Child:
    """A process, its pidfd and what it last said on stderr (an anonymous file)."""

    process: subprocess.Popen[bytes]
    pidfd: int
    stderr_fd: int
    fds: list[int]

    def last_words(self) -> str:
        size = os.fstat(self.stderr_fd).st_size
        text = os.pread(self.stderr_fd, 8000, max(0, size - 8000)).decode(errors="replace").strip()
        status = self.process.returncode
        return text or f"(it said nothing; exit status {status})"

    def close(self) -> None:
        for fd in [self.pidfd, self.stderr_fd, *self.fds]:
            os.close(fd)


def start_child(module: str, spec: dict[str, Any], fds: list[int], threads: int) -> Child:
    """Start `python -m module` with `spec` on a pipe, inheriting `fds`; it dies with this process."""
    spec_read, spec_write = os.pipe()
    with os.fdopen(spec_write, "w") as pipe:  # fits in the pipe, and a child that dies early breaks nothing
        json.dump(spec | {"parent_pid": os.getpid()}, pipe)
    stderr_fd = os.memfd_create("shmzero-stderr")
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent.parent), *filter(None, [environment.get("PYTHONPATH")])]
    )
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--spec-fd", str(spec_read)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr_fd,
            pass_fds=[spec_read, *fds],
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is the parent's alone
        )
    finally:
        os.close(spec_read)
    return Child(process, os.pidfd_open(process.pid), stderr_fd, [])


@dataclass
class _Worker:
    index: int
    child: Child
    grant_fd: int
    record_fd: int
    outstanding: set[int] = field(default_factory=set)
    buffer: bytes = b""


@dataclass
class _Server:
    index: int
    child: Child
    control: socket.socket
    epoch: int
    received: bytes = b""
    ready_at: float | None = None
    """When it began to serve; requests may be older than it."""


class Fleet:
    """Workers and inference processes that play units. Use as a context manager, from one thread."""

    def __init__(
        self, config: SelfPlayConfig, units: Iterable[int], num_units: int, version: int = 0
    ) -> None:
        """Starts everything. `units` yields the ids to play, `num_units` is how many there are.

        `version` is that of the weights it starts with.

        Raises SegmentError where shared memory is short, ConfigError for impossible sizes.
        """
        self.config = config
        self.plan = plan_fleet(config, num_units)
        self.events: deque[str] = deque()
        """Lines for people: replacements, refusals, the switch to the compiled network."""
        self.paused = False
        """While set, no further units are granted; those in progress go on."""
        self.restarts = 0
        self.version = version
        self._checkpoint = str(config.checkpoint) if config.checkpoint else None
        other = config.other_network()
        self._other = None if other == OLDER else other
        self._fresh: Iterator[int] = iter(units)
        self._returned: deque[int] = deque()
        self._left = num_units
        self._deaths: deque[float] = deque()
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._servers: list[_Server] = []
        self._memory = create_private(
            len(self.plan.devices), self.plan.workers, self.plan.slots, self.plan.rows_per_slot
        )
        self.segment = self._memory.segment
        try:
            for index in range(len(self.plan.devices)):
                self._servers.append(self._start_server(index, epoch=1))
            for index in range(self.plan.workers):
                self._workers.append(self._start_worker(index))
        except BaseException:
            self.close()
            raise

    # --- children ---------------------------------------------------------------------------------

    def _start(self, module: str, spec: dict[str, Any], fds: list[int], threads: int) -> Child:
        return start_child(module, spec | {"segment_fd": self._memory.fd}, [*fds, self._memory.fd], threads)

    def _start_worker(self, index: int) -> _Worker:
        grant_read, grant_write = os.pipe()
        record_read, record_write = os.pipe()
        fcntl.fcntl(record_read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(grant_write, False)
        os.set_blocking(record_read, False)
        config = self.config
        spec = {
            "worker": index,
            "grant_fd": grant_read,
            "record_fd": record_write,
            "lanes": self.plan.lanes,
            "spin_us": self.plan.spin_us,
            "search": asdict(config.search()),
            "play": {
                "seed": config.seed,
                "players": config.players,
                "cards": config.cards,
                "trump": config.trump,
                "dealer": config.dealer,
                "games": config.games is not None,
                "others": config.others,
            },
        }
        try:
            child = self._start(
                "shmzero.worker", spec, [grant_read, record_write], threads=1
            )
        finally:
            os.close(grant_read)
            os.close(record_write)
        child.fds = [grant_write, record_read]
        worker = _Worker(index, child, grant_write, record_read)
        self._selector.register(record_read, selectors.EVENT_READ, worker)
        self._selector.register(child.pidfd, selectors.EVENT_READ, worker)
        return worker

    def _start_server(self, index: int, epoch: int) -> _Server:
        ours, theirs = socket.socketpair()
        config = self.config
        spec = {
            "server": index,
            "epoch": epoch,
            "control_fd": theirs.fileno(),
            "threads": self.plan.threads,
            "evaluator": config.evaluator,
            "device": self.plan.devices[index],
            "precision": config.precision,
            "compile": config.compile,
            "max_batch": self.plan.max_batch,
            "timeout_ms": config.timeout_ms,
            "spin_us": self.plan.spin_us,
            "net": asdict(NETS[config.net]),
            "checkpoint": self._checkpoint,
            "searched": config.search().simulations > 0,
            "other": self._other,
            "seed": config.seed,
            "version": self.version,
        }
        with theirs:
            child = self._start(
                "shmzero.inference", spec, [theirs.fileno()], self.plan.threads
            )
        ours.setblocking(False)
        server = _Server(index, child, ours, epoch)
        self._selector.register(ours, selectors.EVENT_READ, server)
        self._selector.register(child.pidfd, selectors.EVENT_READ, server)
        return server

    # --- the loop ---------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether every inference process serves; one that is starting still has to read its weights."""
        return all(server.ready_at is not None for server in self._servers)

    @property
    def done(self) -> bool:
        """Whether every unit has been returned by `poll`."""
        return self._left == 0

    def poll(self, timeout_s: float) -> list[tuple[int, list[bytes]]]:
        """Units finished within at most `timeout_s`, as (unit, records); each once.

        Grants work, replaces the dead. Raises WorkerDied when children keep dying, ConfigError where
        a child refuses its settings.
        """
        self._grant()
        finished: list[tuple[int, list[bytes]]] = []
        dead: list[_Worker | _Server] = []
        for key, _ in self._selector.select(timeout_s):
            owner: _Worker | _Server = key.data
            if key.fd == owner.child.pidfd:
                dead.append(owner)
            elif isinstance(owner, _Worker):
                self._read_frames(owner, finished)
            else:
                self._read_events(owner)
        for owner in dead:
            owner.child.process.wait()
            if isinstance(owner, _Worker):
                self._bury_worker(owner, finished)
            else:
                self._bury_server(owner)
        self._kill_stalled()
        return finished

    def publish(self, path: Path | str, version: int | None = None) -> int:
        """Serve the weights of a checkpoint from the next batch on; returns their version.

        `version` must be higher than the last one (default: the next). A replacement of an inference
        process starts with the last that were published.
        """
        self.version = self.version + 1 if version is None else max(version, self.version)
        self._checkpoint = str(path)
        line = json.dumps({"cmd": "weights", "weights": self._checkpoint, "version": self.version})
        for server in self._servers:
            self._send(server, line)
        return self.version

    def seat_other(self, path: Path) -> None:
        """Let a checkpoint's network hold the seats that `others` gives to one, from the next batch on."""
        self._other = str(path)
        line = json.dumps({"cmd": "other", "weights": self._other})
        for server in self._servers:
            self._send(server, line)

    def counters(self) -> dict[str, int]:
        """Sums over all workers (prefix `worker_` for times) and servers since the start."""
        total: dict[str, int] = {}
        for index in range(self.plan.workers):
            for name, value in self.segment.worker_counters(index).items():
                if name != "pid":
                    key = f"worker_{name}" if name in ("rows", "busy_ns", "wait_ns") else name
                    total[key] = total.get(key, 0) + value
        for index in range(len(self.plan.devices)):
            for name, value in self.segment.server_counters(index).items():
                if name not in ("histogram", "waits", "version"):
                    total[name] = total.get(name, 0) + value
        return total

    def pids(self) -> dict[str, list[int]]:
        """Process ids of the living children, by kind."""
        return {
            "workers": [w.child.process.pid for w in self._workers],
            "servers": [s.child.process.pid for s in self._servers],
        }

    def close(self) -> list[tuple[int, list[bytes]]]:
        """End every child at once and return what was finished and not yet returned."""
        finished: list[tuple[int, list[bytes]]] = []
        children = [worker.child for worker in self._workers] + [server.child for server in self._servers]
        for child in children:
            child.process.kill()
        for child in children:
            child.process.wait()
        for worker in self._workers:
            self._read_frames(worker, finished)
        for server in self._servers:
            server.control.close()
        for child in children:
            child.close()
        self._workers.clear()
        self._servers.clear()
        self._selector.close()
        if self._memory.fd >= 0:
            self._memory.close()
            self._memory.fd = -1
        return finished

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._memory.fd >= 0:
            self.close()

    # --- units ------------------------------------------------------------------------------------

    def _next_unit(self) -> int | None:
        if self._returned:
            return self._returned.popleft()
        return next(self._fresh, None)

    def _grant(self) -> None:
        """Keep every worker's lanes fed with a little to spare; share the last units evenly."""
        if self.paused:
            return
        share = -(-self._left // len(self._workers))
        most = min(self.plan.lanes + self.plan.lanes // 8 + 1, share)
        for worker in self._workers:
            while (room := min(most - len(worker.outstanding), GRANT_UNITS)) > 0:
                units: list[int] = []
                while len(units) < room and (unit := self._next_unit()) is not None:
                    units.append(unit)
                if not units:
                    return
                try:
                    os.write(worker.grant_fd, struct.pack(f"={len(units)}Q", *units))
                except (BlockingIOError, BrokenPipeError):
                    self._returned.extend(units)  # full, or it is dead and about to be replaced
                    break
                worker.outstanding.update(units)

    def _read_frames(self, worker: _Worker, finished: list[tuple[int, list[bytes]]]) -> None:
        parts = [worker.buffer]
        while True:
            try:
                part = os.read(worker.record_fd, PIPE_BYTES)
            except BlockingIOError:
                break
            if not part:
                self._unregister(worker.record_fd)
                break
            parts.append(part)
        data = b"".join(parts)
        at = 0
        while len(data) - at >= 4:
            (size,) = struct.unpack_from("=I", data, at)
            if len(data) - at - 4 < size:
                break
            unit, num_records = struct.unpack_from("=QI", data, at + 4)
            place, records = at + 16, []
            for _ in range(num_records):
                (length,) = struct.unpack_from("=I", data, place)
                records.append(data[place + 4 : place + 4 + length])
                place += 4 + length
            at += 4 + size
            if unit in worker.outstanding:
                worker.outstanding.remove(unit)
                self._left -= 1
                finished.append((unit, records))
        worker.buffer = data[at:]

    # --- deaths -----------------------------------------------------------------------------------

    def _unregister(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _count_death(self, what: str, child: Child) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > DEATH_WINDOW_S:
            self._deaths.popleft()
        words = child.last_words()
        if len(self._deaths) >= MOST_DEATHS:
            raise WorkerDied(
                f"{what} ended with status {child.process.returncode}, the {len(self._deaths)}th death "
                f"of a child within {DEATH_WINDOW_S:g} s; its last words:\n{words}"
            )
        self.restarts += 1
        self.events.append(
            f"{what} ended with status {child.process.returncode} and is replaced: {words.splitlines()[-1]}"
        )

    def _bury_worker(self, worker: _Worker, finished: list[tuple[int, list[bytes]]]) -> None:
        self._read_frames(worker, finished)  # to the end: only then may its units be given out again
        self._unregister(worker.record_fd)
        self._unregister(worker.child.pidfd)
        self.segment.reclaim_worker(worker.index)
        self._returned.extend(sorted(worker.outstanding))
        worker.outstanding.clear()
        try:
            self._count_death(f"worker {worker.index}", worker.child)
            self._workers[worker.index] = self._start_worker(worker.index)
        finally:
            if self._workers[worker.index] is not worker:
                worker.child.close()

    def _bury_server(self, server: _Server) -> None:
        self._read_events(server)
        self._unregister(server.control.fileno())
        self._unregister(server.child.pidfd)
        self.segment.reclaim_server(server.index)
        self._count_death(f"inference process {server.index} ({self.plan.devices[server.index]})", server.child)
        replacement = self._start_server(server.index, server.epoch + 1)
        self._servers[server.index] = replacement
        server.control.close()
        server.child.close()

    def _read_events(self, server: _Server) -> None:
        try:
            while part := server.control.recv(65536):
                server.received += part
            self._unregister(server.control.fileno())
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self._unregister(server.control.fileno())
        *lines, server.received = server.received.split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["event"] == "error":
                raise ConfigError(event["message"])
            if event["event"] == "ready":
                server.ready_at = time.monotonic()
                self.events.append(f"inference process {server.index} serves {event['description']}")
            elif event["event"] in ("refused", "compiled"):
                self.events.append(f"inference process {server.index}: {event['message']}")
            elif event["event"] == "weights":
                self.events.append(f"inference process {server.index} serves weights {event['version']}")

    def _send(self, server: _Server, line: str) -> None:
        try:
            server.control.sendall(line.encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # dead: its replacement starts with these weights

    def _kill_stalled(self) -> None:
        stall_s = self.config.stall_s
        for server in self._servers:
            if server.ready_at is None or time.monotonic() - server.ready_at <= stall_s:
                continue
            if self.segment.stalled_s(server.index) > stall_s:
                self.events.append(f"inference process {server.index} finished no batch for {stall_s:g} s")
                server.ready_at = None
                server.child.process.kill()
