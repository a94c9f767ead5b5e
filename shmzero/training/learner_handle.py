"""The parent's end of the learner: what `python -m shmzero.train` holds of its other process.

Records go down one socket, commands and events over another, and neither end ever waits for the other.
Read next: learner/process.py, train.py.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shmzero.errors import ConfigError, RecordError
from shmzero.processes.child import Child, start_child, starting
from shmzero.processes.watch import Deaths, Pulse, Watch
from shmzero.training.config import TrainConfig


class LearnerLink:
    """The parent's end of the learner: starts it, feeds it, starts it again when it dies."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.events: deque[dict[str, Any]] = deque()
        self._deaths = Deaths()
        self._child: Child | None = None

    def start(self, progress: float, version: int, refill: bool) -> None:
        """`version`: of the newest weights; the learner's own go on from there. `refill`: take up the
        newest records of the folder first."""
        with starting("the learner") as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            record_ours, record_theirs = socket.socketpair()
            undo.callback(record_ours.close)
            undo.callback(record_theirs.close)
            self._pulse = Pulse()
        self._control, self._records = ours, record_ours
        spec = {
            "folder": str(self.folder),
            "config": dataclasses.asdict(self.config),
            "device": self.config.learner_device(),
            "threads": self.config.learner_threads,
            "control_fd": theirs.fileno(),
            "record_fd": record_theirs.fileno(),
            "pulse_fd": self._pulse.fd,
            "progress": progress,
            "version": version,
            "refill": refill,
        }
        with theirs, record_theirs:
            self._child = start_child(
                "shmzero.learner.process", spec, [theirs.fileno(), record_theirs.fileno(), self._pulse.fd],
                self.config.learner_threads,
            )  # fmt: skip
        ours.setblocking(False)
        record_ours.setblocking(False)
        self._received = b""
        self._unsent = bytearray()
        self._ending = self._ended = False
        self._watch = Watch()
        self._watch.look(self._pulse.value, has_work=False)

    @property
    def restarts(self) -> int:
        """How often it was replaced."""
        return self._deaths.total

    @property
    def pid(self) -> int:
        """Process id of the living learner."""
        assert self._child is not None
        return self._child.process.pid

    @property
    def behind_bytes(self) -> int:
        """Records that the learner has not taken yet."""
        return len(self._unsent)

    def feed(self, units: Iterable[tuple[int, list[bytes]]]) -> None:
        """Hand over committed records; never blocks."""
        for _, records in units:
            for record in records:
                self._unsent += struct.pack("=I", len(record)) + record

    def tell(self, **command: Any) -> None:
        """Send one command; one to a learner that is gone is lost."""
        try:
            self._control.sendall(json.dumps(command).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            pass  # dead, which `poll` notices; or busy, and the next one says the same

    def end(self, progress: float, version: int, to_the_end: bool) -> None:
        """Have it save its last state and go; `to_the_end`: after it has learned from all that it was fed.

        To be said again until it has gone: one that is busy may not hear it.
        """
        self.tell(cmd="stop", progress=progress, version=version, to_the_end=to_the_end)
        self._ending = True

    def poll(self) -> bool:
        """Send and receive what there is. False where the learner has died."""
        assert self._child is not None
        try:
            while self._unsent:
                sent = self._records.send(self._unsent[: 1 << 18])
                del self._unsent[:sent]
            if self._ending and not self._ended:
                self._records.shutdown(socket.SHUT_WR)
                self._ended = True
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass
        try:
            while part := self._control.recv(65536):
                self._received += part
        except (BlockingIOError, ConnectionResetError):
            pass
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["event"] == "error":
                raise ConfigError(event["message"])
            if event["event"] == "folder":
                raise RecordError(event["message"])
            if event["event"] in ("metrics", "checkpoint"):
                self._deaths.went_on()
            self.events.append(event)
        return self._child.process.poll() is None

    def kill_stalled(self, stall_s: float, behind: bool) -> str | None:
        """End a learner that has work and for so long has taken no records and got nowhere with a step.

        `behind`: whether it has asked for time, and so has work even where nothing waits. Returns a line about
        it; what becomes of it then is a death like any other.
        """
        self._watch.look(self._pulse.value, bool(self._unsent) or behind)
        limit_s = self._watch.stuck_s(stall_s)
        if limit_s is None:
            return None
        self._watch = Watch()
        assert self._child is not None
        self._child.process.kill()
        return f"the learner did nothing for {limit_s:g} s with work to do"

    def stuck_at_end(self, stall_s: float) -> bool:
        """Whether a learner that is to save and go has got nowhere with that for so long. To be called often."""
        self._watch.look(self._pulse.value, has_work=True)
        return self._watch.stuck_s(stall_s) is not None

    def bury(self) -> str:
        """Clear away a dead learner; returns a line about it. Raises WorkerDied if it keeps dying."""
        child = self._child
        assert child is not None
        child.process.wait()
        try:
            return self._deaths.count("the learner", child)
        finally:
            self._close()

    def kill(self) -> None:
        """End it at once; what it saved last stays."""
        if self._child is not None:
            self._child.process.kill()
            self._child.process.wait()
            self._close()

    def _close(self) -> None:
        assert self._child is not None
        self._control.close()
        self._records.close()
        self._pulse.close()
        self._child.close()
        self._child = None
