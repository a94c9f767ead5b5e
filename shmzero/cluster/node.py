"""The engine of one node: a fleet, in an actor that Ray starts there. It needs no Ray itself.

All calls come one after another on the process's main thread, which starts the fleet's children: they die with it.
Between two calls the workers play on. Read next: driver.py, which calls.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
import time
from collections import deque

from shmzero import _core
from shmzero.cluster.messages import CHUNK_BYTES, Answer, Build, Greeting, Part, Setup, Status, Step
from shmzero.engine.fleet import Fleet
from shmzero.engine.plan import resolve
from shmzero.engine.weights import CheckpointFile
from shmzero.errors import ShmzeroError
from shmzero.machine import Machine, has_cuda

STEP_S = 0.1
"""How long a call plays at most."""
TICK_S = 0.02


class NodeEngine:
    """Plays the units that the driver grants, and answers with their records."""

    def __init__(self, watch_parent: bool = False) -> None:
        """With `watch_parent` this process ends when its parent does, which is Ray's process of this node.

        Ray ends its own workers then only where they are between two calls.
        """
        if watch_parent:
            _core.die_with_parent(os.getppid())
        self._name = secrets.token_hex(8)
        self._fleet: Fleet | None = None
        self._ended = Status()
        """How the fleet was that has ended."""
        self._error: ShmzeroError | None = None
        self._outbox: deque[Part] = deque()
        self._sent: dict[int, int] = {}
        """How many rounds of a game in progress the driver has the records of."""
        self._finished = FinishedLately()

    def greet(self) -> Greeting:
        """Say who this is."""
        return Greeting(str(Build.here()), socket.gethostname(), self._name)

    def begin(self, setup: Setup, checkpoint: CheckpointFile | None, other: CheckpointFile | None) -> Answer:
        """Start a fleet, in place of one that there may be. `checkpoint`, `other`: see Fleet."""
        self._close()
        self._error, self._outbox, self._sent, self._ended = None, deque(), {}, Status()
        cores = min(setup.num_cpus, Machine.here().cores) or 1
        machine = Machine(cores, setup.num_gpus > 0 and has_cuda())
        try:
            plan = resolve(setup.config, machine).for_units(setup.num_units)
            self._fleet = Fleet(plan, None, setup.num_units, setup.version, checkpoint=checkpoint, other=other)
        except ShmzeroError as error:
            self._error = error
        return self._answer()

    def step(self, step: Step, checkpoint: CheckpointFile | None = None, other: CheckpointFile | None = None) -> Answer:
        """Take what comes with the step, play on, and answer when there is enough to tell or STEP_S is over.

        What is for another engine, which was in this one's place before it died, is not taken.
        """
        fleet = self._fleet
        if fleet is None or step.engine != self._name:
            return self._answer()
        try:
            if checkpoint is not None:
                fleet.publish(checkpoint, step.version)
            if other is not None:
                fleet.seat_other(other)
            self._sent |= {unit: len(records) for unit, records in step.units.items() if records}
            fleet.add_units(step.units)
            fleet.paused = step.paused
            self._play(fleet)
        except ShmzeroError as error:
            self._close()
            self._error = error
        return self._answer()

    def end(self) -> Answer:
        """End the fleet; what it has finished is in the answer, and what it has counted."""
        self._close()
        return self._answer(most_bytes=None)

    def pids(self) -> dict[str, list[int]]:
        """Process ids of the engine and of its living children, by kind."""
        return {"engine": [os.getpid()]} | (self._fleet.pids() if self._fleet else {})

    # --- playing -----------------------------------------------------------------------------------------

    def _play(self, fleet: Fleet) -> None:
        end = time.monotonic() + STEP_S
        size = sum(size_of(part) for part in self._outbox)
        while size < CHUNK_BYTES and (left_s := end - time.monotonic()) > 0:
            for unit, records in fleet.poll(min(left_s, TICK_S)):
                size += size_of(self._put(unit, records, is_last=True))
                self._finished.add()
        self._put_games(fleet)

    def _put_games(self, fleet: Fleet) -> None:
        """Put what the driver does not have of games in progress into the next answers."""
        for unit, records in fleet.in_progress.items():
            if len(records) > self._sent.get(unit, 0):
                self._put(unit, records, is_last=False)

    def _put(self, unit: int, records: list[bytes], is_last: bool) -> Part:
        """Put those records of a unit that the driver does not have into the next answers."""
        part = Part(unit, self._sent.pop(unit, 0), is_last, [])
        part.records.extend(records[part.first :])
        if not is_last:
            self._sent[unit] = len(records)
        self._outbox.append(part)
        return part

    def _answer(self, most_bytes: int | None = CHUNK_BYTES) -> Answer:
        parts: list[Part] = []
        size = 0
        while self._outbox and (most_bytes is None or not parts or size + size_of(self._outbox[0]) <= most_bytes):
            parts.append(self._outbox.popleft())
            size += size_of(parts[-1])
        events = []
        if self._fleet is not None:
            events = list(self._fleet.events)
            self._fleet.events.clear()
        return Answer(self._name, parts, events, self._status(), None if self._outbox else self._error)

    def _status(self) -> Status:
        fleet = self._fleet
        if fleet is None:
            return self._ended
        return Status(
            notices=fleet.notices(),
            served=fleet.served.version,
            ready=fleet.ready,
            waits=fleet.waits,
            num_workers=fleet.num_workers,
            num_servers=fleet.num_servers,
            restarts=fleet.restarts,
            wanted=2 * fleet.plan.workers * (fleet.plan.lanes + 1) + self._finished.in_a_second(),
            counters=dict(fleet.counters()),
        )

    def _close(self) -> None:
        """End the fleet, if there is one, and keep what it has finished for the driver."""
        if self._fleet is not None:
            self._ended = dataclasses.replace(self._status(), ready=False, num_workers=0, num_servers=0, wanted=0)
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            for unit, records in fleet.close():
                self._put(unit, records, is_last=True)
            self._put_games(fleet)


def size_of(part: Part) -> int:
    """Bytes of a part's records, and about what goes with them."""
    return sum(len(record) + 16 for record in part.records) + 32


class FinishedLately:
    """Counts what was finished within the last second."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def add(self) -> None:
        """One more was finished just now."""
        self._times.append(time.monotonic())

    def in_a_second(self) -> int:
        """How many were finished within the last second."""
        oldest = time.monotonic() - 1.0
        while self._times and self._times[0] < oldest:
            self._times.popleft()
        return len(self._times)
