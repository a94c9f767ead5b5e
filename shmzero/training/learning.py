"""The learner in a training run: kept alive, told where the run stands, listened to.

It is one process; learner_handle.py starts it and talks to it. What its messages mean to self-play is run.py's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from shmzero.engine.progress import Every
from shmzero.errors import WorkerDied
from shmzero.learner.config import LearnerConfig
from shmzero.learner.messages import CheckpointSaved, Finished, Learned, PauseWanted, Ready, WeightsPublished
from shmzero.runs.checkpoints import newest_checkpoint
from shmzero.runs.recorder import Unit
from shmzero.training.learner_handle import LearnerHandle

TELL_S = 0.2
"""How often the learner is told where the run stands."""
MOST_BEHIND_BYTES = 1 << 18
"""Self-play pauses while more records than this wait for the learner, which may only be starting."""
STOP_S = 60.0
"""How long the learner may get nowhere at its end, while it learns on or saves."""

FilesWritten = WeightsPublished | CheckpointSaved


class Learning:
    """The learner of a run, whichever process it is at the moment."""

    def __init__(self, config: LearnerConfig, folder: Path, say: Callable[[str], None]) -> None:
        self.handle = LearnerHandle(config, folder)
        self._say = say
        newest = newest_checkpoint(folder)
        self.report: dict[str, Any] = {"steps": int(newest.stem)} if newest else {}
        """Its last report, or only the step of the last checkpoint."""
        self.is_ready = False
        self.stopped = False
        """Whether it has saved its last state."""
        self._asked_for_time = False
        self._tell_due = Every(TELL_S, at_once=True)
        self._end_due = Every(TELL_S, at_once=True)

    def start(self, done: float, version: int, refill: bool) -> None:
        """Start it; see LearnerHandle.start."""
        self.handle.start(done, version, refill)

    def feed(self, units: Iterable[Unit]) -> None:
        """Hand over committed units."""
        self.handle.feed(units)

    @property
    def is_behind(self) -> bool:
        """Whether self-play shall wait for it."""
        return self._asked_for_time or self.handle.behind_bytes > MOST_BEHIND_BYTES

    def attend(self, done: float, version: int, stall_s: float) -> list[FilesWritten]:
        """Tell it that so much of the run is done and which weights play, and replace it where it has died.

        Returns its events about files: of new weights and of checkpoints. One that gets nowhere for `stall_s` is
        ended. Raises ConfigError, RecordError and WorkerDied as LearnerHandle does.
        """
        if self._tell_due():
            self.handle.tell(done, version)
        if stalled := self.handle.kill_stalled(stall_s, self._asked_for_time):
            self._say(stalled)
        alive = self.handle.poll()
        events = self._take_events()
        if not alive:
            self._replace(done, version)
        return events

    def attend_end(self, done: float, version: int, to_the_end: bool) -> list[FilesWritten]:
        """The same once the run is over, until it has `stopped`: it saves its last state.

        With `to_the_end` it first learns from all that it was fed. Raises WorkerDied where it does not.
        """
        if self.handle.stuck_at_end(STOP_S):
            raise WorkerDied(f"the learner did nothing for {STOP_S:g} s at its end; what it saved before stays")
        if self._end_due():
            self.handle.end(done, version, to_the_end)
        alive = self.handle.poll()
        events = self._take_events()
        if not alive and not self.stopped:
            self._replace(done, version)
            self._end_due = Every(TELL_S, at_once=True)
        return events

    def kill(self) -> None:
        """End it at once; what it saved last stays."""
        self.handle.kill()

    def _replace(self, done: float, version: int) -> None:
        self._say(self.handle.reap())
        self._asked_for_time = self.is_ready = False
        self.start(done, version, refill=True)

    def _take_events(self) -> list[FilesWritten]:
        """Note what concerns only the learner; returns the other events."""
        others: list[FilesWritten] = []
        while self.handle.events:
            match self.handle.events.popleft():
                case PauseWanted(on):
                    self._asked_for_time = on
                case Learned() as learned:
                    self.report = dataclasses.asdict(learned)
                    self.report |= self.report.pop("means")
                case Finished(steps):
                    self.report["steps"] = steps
                    self.stopped = True
                case Ready(steps, rows):
                    self.is_ready = True
                    if steps:
                        self._say(f"the learner goes on from step {steps:,} with {rows:,} positions")
                case WeightsPublished() | CheckpointSaved() as event:
                    others.append(event)
        return others
