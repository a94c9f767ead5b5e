"""The worker processes of a fleet: they are granted units, and their finished rounds are read.

The pool replaces workers that die and gives their units out again: see `_reap`. Read next: worker.py (the process),
units.py (what is granted), csrc/play/worker.h (who reads grants and writes frames), csrc/shm/reaper.h (what becomes of
the slots of a dead worker), processes/deaths.py (how many may die).
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from shmzero import _core
from shmzero.engine.messages import WorkerSpec
from shmzero.engine.plan import FleetPlan
from shmzero.engine.units import Units
from shmzero.errors import WorkerDied
from shmzero.processes.child import Child, start_child, starting
from shmzero.processes.deaths import Deaths
from shmzero.processes.selector import ChildSelector
from shmzero.shm.segment import PrivateSegment

PIPE_BYTES = 1 << 20
MOST_BLAMED = 2
"""How many workers may end by what they play of one unit."""
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP)
"""Signals that a process gets by its own doing. Nobody knows who sent any other signal."""


@dataclass
class Worker:
    """A worker process as its parent holds it."""

    index: int
    child: Child
    grant_fd: int
    record_fd: int
    outstanding: set[int] = field(default_factory=set)
    """Units that were granted to it and are not finished."""
    buffer: bytes = b""
    """The part of a frame that has arrived."""

    def has_ended_itself(self) -> bool:
        """Whether it ended by what it did, and not by somebody's signal."""
        return bool(self.child.stuck) or self.child.status > 0 or -self.child.status in CRASHES


class WorkerPool:
    """Starts the workers, grants them units, reads their records, replaces those that die."""

    def __init__(
        self,
        plan: FleetPlan,
        memory: PrivateSegment,
        units: Units,
        deaths: Deaths,
        selector: ChildSelector,
        events: deque[str],
        command_of: Callable[[int], str],
    ) -> None:
        """Starts nothing. `command_of` is the command that plays a unit alone; `events` gets lines for people."""
        self.workers: list[Worker] = []
        self._plan, self._memory, self._units = plan, memory, units
        self._deaths, self._selector, self._events, self._command_of = deaths, selector, events, command_of
        self._blamed: Counter[int] = Counter()
        """How many workers each unit has ended."""

    def start(self) -> None:
        """Start all workers. Raises StartError."""
        for index in range(self._plan.workers):
            self.workers.append(self._start(index))

    def _start(self, index: int) -> Worker:
        name = f"worker {index}"
        with starting(name) as held, ExitStack() as theirs:
            grant_read, grant_write = os.pipe()
            theirs.callback(os.close, grant_read)
            held.callback(os.close, grant_write)
            record_read, record_write = os.pipe()
            theirs.callback(os.close, record_write)
            held.callback(os.close, record_read)
            with suppress(PermissionError):  # beyond a user's share of pipe memory; a small pipe will do
                fcntl.fcntl(record_read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            os.set_blocking(grant_write, False)
            os.set_blocking(record_read, False)
            fds = [self._memory.fd, grant_read, record_write]
            spec = self._spec(index, *fds)
            child = start_child(name, "shmzero.engine.worker", spec, fds, 1, held)
        worker = Worker(index, child, grant_write, record_read)
        self._selector.add(record_read, lambda: self._read_frames(worker))
        self._selector.add_end(child, lambda: self._reap(worker))
        return worker

    def _spec(self, index: int, segment_fd: int, grant_fd: int, record_fd: int) -> WorkerSpec:
        config = self._plan.config
        return WorkerSpec(
            segment_fd=segment_fd,
            grant_fd=grant_fd,
            record_fd=record_fd,
            worker=index,
            lanes=self._plan.lanes,
            spin_us=self._plan.spin_us,
            search=self._plan.search,
            deals=config.deals,
            seed=config.seed,
            games=config.length.games is not None,
            opponent_pool=config.seats.opponent_pool,
        )

    @property
    def is_idle(self) -> bool:
        """Whether all that was granted is finished."""
        return not any(worker.outstanding for worker in self.workers)

    def grant(self) -> None:
        """Keep every worker's lanes fed with a little to spare; share the last units evenly."""
        share = -(-self._units.left // len(self.workers))
        most = min(self._plan.lanes + self._plan.lanes // 8 + 1, share)
        for worker in self.workers:
            while (room := min(most - len(worker.outstanding), _core.MAX_GRANTS_PER_WRITE)) > 0:
                units = self._units.hand_out(room)
                if not units:
                    return
                try:
                    os.write(worker.grant_fd, b"".join(map(self._granted, units)))
                except (BlockingIOError, BrokenPipeError):
                    self._units.give_back(units)  # the pipe is full, or the worker is dead and about to be replaced
                    break
                worker.outstanding.update(units)

    def _granted(self, unit: int) -> bytes:
        """A unit as its worker reads it."""
        records = self._units.in_progress.get(unit)
        if not records:
            return _core.pack_grant(unit)
        last = _core.decode_record(records[-1])
        totals = [before + score for before, score in zip(last["totals_before"], last["scores"], strict=True)]
        return _core.pack_grant(unit, len(records), totals)

    def _read_frames(self, worker: Worker) -> None:
        parts = [worker.buffer]
        while True:
            try:
                part = os.read(worker.record_fd, PIPE_BYTES)
            except BlockingIOError:
                break
            if not part:
                self._selector.remove(worker.record_fd)
                break
            parts.append(part)
        data = b"".join(parts)
        frames, used = _core.read_frames(data)
        worker.buffer = data[used:]
        for unit, record, is_last in frames:
            if unit in worker.outstanding:
                self._deaths.went_on()
                self._units.add_record(unit, record, is_last)
                if is_last:
                    worker.outstanding.remove(unit)

    # --- deaths -----------------------------------------------------------------------------------

    def _reap(self, worker: Worker) -> None:
        """Clear away a worker that has ended, and replace it. Raises WorkerDied, StartError."""
        self._read_frames(worker)  # to the end: only then may its units be given out again
        self._selector.remove(worker.record_fd)
        self._selector.remove(worker.child.end_fd)
        played = self._memory.segment.playing_unit(worker.index)
        to_blame = played in worker.outstanding and worker.has_ended_itself()
        self._memory.segment.reclaim_worker(worker.index)
        self._units.give_back(sorted(worker.outstanding))
        worker.outstanding.clear()
        self._events.append(self._deaths.count(worker.child.name, worker.child))
        if played is not None and to_blame:
            self._blame(played, worker.child)
        self.workers[worker.index] = self._start(worker.index)
        worker.child.close()

    def _blame(self, unit: int, child: Child) -> None:
        """Note that playing a unit has ended its worker. Raises WorkerDied where it is given up for that."""
        self._blamed[unit] += 1
        if self._blamed[unit] < MOST_BLAMED:
            return
        what = "round" if self._plan.config.length.games is None else "game"
        raise WorkerDied(
            f"{what} {unit} has ended {MOST_BLAMED} workers, of which the last "
            f"{child.stuck or f'ended with status {child.status}'}: {child.last_words().splitlines()[-1]}; it is given "
            f"up, and this run with it, whose finished rounds are kept. Play it alone with: {self._command_of(unit)}"
        )

    def kill(self) -> None:
        """Tell all workers to end at once; does not wait for them."""
        for worker in self.workers:
            worker.child.process.kill()

    def close(self) -> None:
        """End all workers at once, and read what they have written."""
        for worker in self.workers:
            worker.child.process.kill()
            worker.child.process.wait()
            self._read_frames(worker)
            worker.child.close()
        self.workers.clear()
