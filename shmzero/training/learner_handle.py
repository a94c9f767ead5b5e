"""The parent's end of the learner: what `python -m shmzero.train` holds of its other process.

Records go down one socket, commands and events over another, and neither end ever waits for the other.
Read next: learner/process.py, training/run.py.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from shmzero import _core
from shmzero.errors import ConfigError, RecordError
from shmzero.learner.config import LearnerConfig
from shmzero.learner.messages import (
    EVENTS,
    CheckpointSaved,
    Event,
    Finish,
    FolderFailed,
    Learned,
    LearnerSpec,
    RunProgress,
    SettingsRefused,
)
from shmzero.processes.child import Child, start_child, starting
from shmzero.processes.deaths import Deaths
from shmzero.processes.line_socket import LineSocket
from shmzero.processes.watch import Pulse


class LearnerHandle:
    """Starts the learner, feeds it, and starts it again when it dies."""

    def __init__(self, config: LearnerConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.events: deque[Event] = deque()
        """What it has told, oldest first; whoever acts on an event takes it out."""
        self._deaths = Deaths()
        self._child: Child | None = None

    def start(self, progress: float, version: int, refill: bool) -> None:
        """Start the process. Raises StartError where the machine has no room for it.

        `version` is that of the newest weights: the learner numbers its own from there on. With `refill` it takes up
        the newest records of the folder first.
        """
        name, threads = "the learner", self.config.learner_threads
        with starting(name) as held, ExitStack() as theirs:
            self._lines, control_fd = LineSocket.pair(EVENTS, held, theirs)
            self._records, record_end = socket.socketpair()
            held.callback(self._records.close)
            theirs.callback(record_end.close)
            self._records.setblocking(False)
            self._pulse = Pulse()
            held.callback(self._pulse.close)
            fds = [control_fd, record_end.fileno(), self._pulse.fd]
            spec = LearnerSpec(
                control_fd=control_fd,
                record_fd=record_end.fileno(),
                pulse_fd=self._pulse.fd,
                folder=self.folder,
                config=self.config,
                device=self.config.learner,
                threads=threads,
                progress=progress,
                version=version,
                refill=refill,
            )
            self._child = start_child(name, "shmzero.learner.process", spec, fds, threads, held)
        self._unsent = bytearray()
        self._ending = self._ended = False
        self._child.watch.look(self._pulse.value, has_work=False)

    @property
    def restarts(self) -> int:
        """How often it was replaced."""
        return self._deaths.total

    @property
    def pid(self) -> int:
        """Process id of the living learner."""
        return self._living.pid

    @property
    def _living(self) -> Child:
        assert self._child is not None, "the learner has not been started"
        return self._child

    @property
    def behind_bytes(self) -> int:
        """Records that the learner has not taken yet."""
        return len(self._unsent)

    def feed(self, units: Iterable[tuple[int, list[bytes]]]) -> None:
        """Hand over committed records; never blocks."""
        for unit, records in units:
            for number, record in enumerate(records, 1):
                self._unsent += _core.pack_frame(unit, record, last=number == len(records))

    def tell(self, progress: float, version: int) -> None:
        """Say what share of the run is done, and which weights self-play has. Never blocks."""
        self._lines.post(RunProgress(progress, version))

    def end(self, progress: float, version: int, to_the_end: bool) -> None:
        """Have it save its last state and go; `to_the_end`: after it has learned from all that it was fed.

        `to_the_end` may change while it learns: call this again until it has gone.
        """
        self._lines.post(Finish(progress, version, to_the_end))
        self._ending = True

    def poll(self) -> bool:
        """Send and receive what there is. False where the learner has died.

        Raises ConfigError where it refuses its settings, RecordError where it cannot use the run folder.
        """
        self._lines.flush()
        self._send_records()
        for event in self._lines.receive():
            match event:
                case SettingsRefused(message):
                    raise ConfigError(message)
                case FolderFailed(message):
                    raise RecordError(message)
                case Learned() | CheckpointSaved():
                    self._deaths.went_on()
            self.events.append(event)
        return self._living.is_running()

    def _send_records(self) -> None:
        try:
            while self._unsent:
                sent = self._records.send(self._unsent[: 1 << 18])
                del self._unsent[:sent]
            if self._ending and not self._ended:
                self._records.shutdown(socket.SHUT_WR)
                self._ended = True
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass

    def kill_stalled(self, stall_s: float, behind: bool) -> str | None:
        """End a learner that has work and for so long has taken no records and got nowhere with a step.

        `behind`: whether it has asked for time, and so has work even where nothing waits. Returns a line about
        it; what becomes of it then is a death like any other.
        """
        child = self._living
        child.watch.look(self._pulse.value, bool(self._unsent) or behind)
        limit_s = child.watch.stuck_s(stall_s)
        return child.end_stuck(f"did nothing for {limit_s:g} s with work to do" if limit_s else None)

    def stuck_at_end(self, stall_s: float) -> bool:
        """Whether a learner that is to save and go has got nowhere with that for so long. To be called often."""
        watch = self._living.watch
        watch.look(self._pulse.value, has_work=True)
        return watch.stuck_s(stall_s) is not None

    def reap(self) -> str:
        """Clear away a dead learner; returns a line about it. Raises WorkerDied if it keeps dying."""
        child = self._living
        child.process.wait()
        try:
            return self._deaths.count(child.name, child)
        finally:
            child.close()
            self._child = None

    def kill(self) -> None:
        """End it at once; what it saved last stays."""
        if self._child is not None:
            self._child.kill()
            self._child = None
