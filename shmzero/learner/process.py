"""The learner process: records in, weights out.

Finished rounds come over one socket as frames (u32 bytes, record), messages go both ways over another.
A learner that starts takes up the state and the newest records of the run folder, so one that was
killed is simply started again. A second thread does the critic's half of a step while the first does the
policy's half of the step before. Read next: algorithm.py (the arithmetic), messages.py (what both ends say),
training/learner_handle.py (the parent's end).
"""

from __future__ import annotations

import select
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from shmzero import _core
from shmzero.errors import ConfigError, RecordError
from shmzero.files import make_folder, remove_unfinished
from shmzero.learner.algorithm import METRICS, Learner, Valued
from shmzero.learner.buffer import ReplayBuffer
from shmzero.learner.feed import RecordPipe, ends_game, newest_records
from shmzero.learner.messages import (
    COMMANDS,
    CheckpointSaved,
    Command,
    Finish,
    Finished,
    FolderFailed,
    Learned,
    LearnerSpec,
    PauseWanted,
    Ready,
    SettingsRefused,
    WeightsPublished,
)
from shmzero.learner.schedule import Schedule
from shmzero.learner.state import load_state, save_state
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.processes.child import child_main
from shmzero.processes.line_socket import LineSocket
from shmzero.processes.watch import Pulse
from shmzero.runs.checkpoints import checkpoint_path, newest_version, weights_path
from shmzero.runs.folder import RunFolder

WAIT_S = 0.05
METRICS_S = 1.0
FIRST_ROWS = 8192
"""Rows before the first step, less in a small buffer; the input scale is measured on them."""
LEAD_SHARES = (1 / 6, 1 / 3)
"""Self-play pauses when it is further ahead of what the replay ratio asks for than the second share of
the buffer, and goes on below the first: its rounds take a while to come, and nobody shall starve."""


class LearnerProcess:
    """The loop around a Learner."""

    def __init__(self, spec: LearnerSpec, parent: LineSocket[Command]) -> None:
        torch.set_num_threads(spec.threads)
        self._second = ThreadPoolExecutor(1, "critic", torch.set_num_threads, (spec.threads,))
        self._ahead: Future[Valued] | None = None
        """The critic's half of the next step."""
        self._parent = parent
        self._folder = spec.folder
        self._config = spec.config
        self._pipe = RecordPipe(spec.record_fd)
        self._pulse = Pulse(spec.pulse_fd)
        self._learner = Learner(self._config, spec.device, self._pulse.beat)
        self._buffer = ReplayBuffer(self._config.buffer, self._config.seed)
        self._progress = spec.progress
        self._rows_new = 0
        self._version = max(newest_version(self._folder), spec.version)
        self._played_version = spec.version
        """The version of the weights that self-play has; with a gate it counts those that passed."""
        self._paused = False
        self._wait_s = 0.0
        self._first_step = 0
        self._to_the_end = False
        self._open: list[bytes] = []  # rounds of a game whose last one has not come yet
        names = RunFolder(self._folder)
        for place in (names.path, names.weights, names.checkpoints):
            remove_unfinished(place)  # of a learner that was killed while it wrote
        state = names.learner_state
        if state.exists():
            facts = load_state(self._learner, state)
            self._rows_new = facts["rows"]
            self._first_step = self._learner.steps
        if spec.refill:
            # What is committed meanwhile comes over the pipe as well: a few rows may be there twice.
            try:
                for records in newest_records(self._folder, self._config.buffer):
                    self._add(records)
                    self._pulse.beat()
            except ConfigError:
                raise
            except ValueError as error:
                raise RecordError(f"record file {names.records} holds what is no round: {error}") from None
        if not self._learner.steps:
            self._rows_new = self._buffer.added

    def run(self) -> None:
        """Learn until the parent says stop or is gone, and save the last state."""
        config, learner = self._config, self._learner
        self._pulse.beat()
        self._parent.send(Ready(learner.steps, len(self._buffer)))
        if learner.steps:
            self._publish()
        started = published_at = saved_at = metrics_at = time.monotonic()
        published = saved = learner.steps
        pending: list[Any] = []
        stopping = False
        while True:
            self._take()
            for command in self._parent.receive():
                self._progress, self._played_version = command.progress, command.version
                if isinstance(command, Finish):
                    stopping = True
                    self._to_the_end = command.to_the_end
            if self._parent.closed:
                return  # the parent is gone; the folder holds the last saved state
            if stopping and not (self._to_the_end and (self._may_step() or not self._pipe.ended)):
                if pending:
                    self._report(pending, time.monotonic() - started)
                self._finish()
                return
            if not stopping:
                self._balance()
            if not self._may_step():
                before = time.monotonic()
                select.select([self._pipe.fd], [], [], WAIT_S)
                self._wait_s += time.monotonic() - before
            else:
                if not learner.scaled:
                    learner.measure_scale(self._buffer)
                if (metrics := self._step()) is not None:
                    pending.append(metrics)
            now = time.monotonic()
            if pending and now - metrics_at >= METRICS_S:
                self._report(pending, now - started)
                pending, metrics_at = [], now
            if learner.steps > published and now - published_at >= config.publish_s:
                self._publish()
                published, published_at = learner.steps, now
            if learner.steps > saved and now - saved_at >= config.checkpoint_s:
                self._save()
                saved, saved_at = learner.steps, now

    def _step(self) -> Any:
        """The policy's half of a step, while the critic is already at the next one if that is wanted."""
        schedule = Schedule.at(self._config, self._progress)
        valued = (self._ahead or self._value(schedule)).result()
        self._ahead = self._value(schedule) if self._may_step(ahead=1) else None
        return self._learner.policy_step(valued, schedule)

    def _value(self, schedule: Any) -> Future[Any]:
        batch = self._learner.draw(self._buffer)
        return self._second.submit(self._learner.critic_step, batch, schedule)

    def _take(self) -> None:
        if records := self._pipe.read():
            self._rows_new += self._add(records)
            self._pulse.beat()

    def _add(self, records: list[bytes]) -> int:
        """Into the buffer; where whole games decide, only as far as they are complete."""
        if self._config.utility == "points":
            return self._buffer.add(records)
        self._open += records
        end = len(self._open)
        while end > 0 and not ends_game(self._open[end - 1]):
            end -= 1
        whole, self._open = self._open[:end], self._open[end:]
        return self._buffer.add(whole, _core.game_win_shares(whole)) if whole else 0

    def _may_step(self, ahead: int = 0) -> bool:
        """Whether a step is wanted after `ahead` more."""
        # No more than self-play brings before it is held back; of a tiny run what there is.
        few = len(self._buffer) < min(FIRST_ROWS, LEAD_SHARES[0] * self._config.buffer)
        if few and not (self._pipe.ended and len(self._buffer)):
            return False
        trained = (self._learner.steps + ahead) * self._config.batch
        return trained < self._rows_new * self._config.replay_ratio

    def _balance(self) -> None:
        """Ask the parent to hold self-play back, or to let it go on."""
        trained = self._learner.steps * self._config.batch / self._config.replay_ratio
        lead = self._rows_new - trained
        if (lead > LEAD_SHARES[not self._paused] * self._config.buffer) != self._paused:
            self._paused = not self._paused
            self._parent.send(PauseWanted(self._paused))

    def _report(self, pending: list[Any], seconds: float) -> None:
        import torch

        means = torch.stack(pending).mean(dim=0).tolist()
        learner, rows = self._learner, len(self._buffer)
        versions = self._buffer.tensors["versions"][:rows].float()
        learned = Learned(
            steps=learner.steps,
            rows=self._rows_new,
            skipped=learner.skipped,
            steps_per_s=(learner.steps - self._first_step) / seconds,
            replay_ratio=learner.steps * self._config.batch / max(self._rows_new, 1),
            replay_age_versions=self._played_version - float(versions.mean()),
            learner_waits=self._wait_s / seconds,
            learning_rate=Schedule.at(self._config, self._progress).learning_rate,
            means=dict(zip(METRICS, means, strict=True)),
        )
        self._parent.send(learned)

    def _publish(self) -> None:
        self._version += 1
        path = weights_path(self._folder, self._version)
        make_folder(path.parent)
        save_checkpoint(self._learner.ema, path, self._config.utility)
        self._pulse.beat()
        self._parent.send(WeightsPublished(path, self._version))

    def _save(self) -> None:
        """The state to go on from, and a checkpoint that stays."""
        if self._ahead is not None:
            self._ahead.result()  # a critic at rest; it is saved half a step ahead of the policy
        path = checkpoint_path(self._folder, self._learner.steps)
        make_folder(path.parent)
        save_checkpoint(self._learner.ema, path, self._config.utility)
        self._pulse.beat()
        save_state(self._learner, RunFolder(self._folder).learner_state, {"rows": self._rows_new})
        self._pulse.beat()
        self._parent.send(CheckpointSaved(self._learner.steps))

    def _finish(self) -> None:
        if self._learner.steps:
            self._publish()
            self._save()
        self._parent.send(Finished(self._learner.steps))


def run(spec: LearnerSpec) -> int:
    """The process. Returns the exit code."""
    parent = LineSocket(spec.control_fd, COMMANDS)
    try:
        LearnerProcess(spec, parent).run()
    except ConfigError as error:
        parent.send(SettingsRefused(str(error)))
        return 2
    except RecordError as error:
        parent.send(FolderFailed(str(error)))
        return 1
    except OSError as error:
        parent.send(FolderFailed(f"run folder {spec.folder} cannot be written: {error.strerror}"))
        return 1
    return 0


if __name__ == "__main__":
    child_main(LearnerSpec, run)
