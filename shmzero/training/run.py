"""A training run: self-play, the learner and matches, until the budget is spent."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shmzero.engine.fleet import Fleet
from shmzero.engine.plan import plan_fleet
from shmzero.engine.progress import Meter, Progress
from shmzero.errors import WorkerDied
from shmzero.game.bots import OLDER
from shmzero.learner.messages import CheckpointSaved, Finished, Learned, PauseWanted, Ready, WeightsPublished
from shmzero.matches.agents import make_agent
from shmzero.runs.checkpoints import checkpoints, newest_checkpoint, newest_version, remove_old_weights, weights_path
from shmzero.runs.folder import RunFolder
from shmzero.runs.metrics import Board, read_metrics
from shmzero.runs.record_writer import RecordWriter, run_folder
from shmzero.settings import to_toml
from shmzero.training.config import TrainConfig
from shmzero.training.learner_handle import LearnerHandle
from shmzero.training.match_runner import MatchRunner
from shmzero.training.progress import TrainProgress

TICK_S = 0.02
COMMIT_S = 0.25
TELL_S = 0.2
"""How often the learner hears where the run stands."""
METRICS_S = 5.0
WEIGHTS_KEPT = 3
"""Published weights that stay on disk while nobody starts: one may be about to be read."""
MOST_BEHIND_BYTES = 1 << 18
"""Self-play pauses while more records than this wait for the learner, which may only be starting."""
STOP_S = 60.0
"""How long the learner may get nowhere at its end, while it learns on or saves."""
MUCH_WAITING = 0.25
BALANCED_S = 30.0
"""When one half has waited for so large a share of at least such a time, the summary says what would balance them."""
ENDLESS = 10**12
"""Units of a run that ends by its time."""


class Run:
    """One training run in its folder."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        writer: RecordWriter,
        say: Callable[[str], None],
        show: Callable[[TrainProgress], None],
        stopped: Callable[[], bool],
        started: float,
    ) -> None:
        """`writer` is the folder's; `started`: when the time began, by time.monotonic()."""
        self.config = config
        self.folder = folder
        self._say, self._show, self._stopped = say, show, stopped
        self._writer = writer
        self._ledger = self._writer.units()
        self._rounds_before = self._rounds = self._writer.count()
        self._waiting: list[tuple[int, list[bytes]]] = []
        names = RunFolder(folder)
        before = read_metrics(names.metrics) if names.metrics.exists() else []
        self._elapsed_before = max((line["elapsed_s"] for line in before), default=0.0)
        self._trained_s = self._elapsed_before
        self._started = started
        self._learner = LearnerHandle(config, folder)
        self._matches = MatchRunner(config, folder)
        self._matches.recall(before)
        self._board = Board(names.tensorboard) if config.tensorboard else None
        newest = newest_checkpoint(folder)
        self._report: dict[str, Any] = {"steps": int(newest.stem)} if newest else {}
        self._learner_is_behind = False
        self._learner_is_ready = False
        self._learner_stopped = False
        self._played_s = self._waited_s = 0.0  # of the stages before this one
        self._told_at = self._committed_at = self._shown_at = self._metrics_at = 0.0

    def _judged(self) -> bool:
        """Whether the last checkpoint's matches and its rating are in the metrics, as far as they are wanted."""
        checkpoint, config = newest_checkpoint(self.folder), self.config
        if checkpoint is None or not self._matches.wanted:
            return True
        steps, lines = int(checkpoint.stem), read_metrics(RunFolder(self.folder).metrics)
        last = [line["match"] for line in lines if "match" in line and line["match"]["steps"] == steps]
        played = {match["opponent"] for match in last if match["mode"] == "rest"}
        rated = any(line["rating"]["steps"] == steps for line in lines if "rating" in line)
        return played.issuperset(filter(None, config.opponents.split(","))) and (rated or not config.rate)

    @property
    def elapsed_s(self) -> float:
        """Seconds trained, over all sessions."""
        return self._elapsed_before + time.monotonic() - self._started

    @property
    def done(self) -> float:
        """Share of the run that is done."""
        config = self.config
        shares = [0.0]
        if config.minutes is not None:
            shares.append((self.elapsed_s + config.closing_s) / (60 * config.minutes))
        if config.rounds is not None:
            shares.append(self._rounds / config.rounds)
        return min(max(shares), 1.0)

    def _left_s(self, rounds_per_min: float) -> float | None:
        """Seconds to the end of the run at this rate, where that can be said."""
        config, left = self.config, []
        if config.minutes is not None:
            left.append(max(60 * config.minutes - config.closing_s - self.elapsed_s, 0.0))
        if config.rounds is not None and rounds_per_min > 0:
            left.append(max(config.rounds - self._rounds, 0) * 60 / rounds_per_min)
        return min(left, default=None)

    def __call__(self) -> dict[str, Any]:
        """Train to the end; returns the summary of `--json`."""
        try:
            if self.done < 1.0:
                self._train()
            elif self._judged():
                self._say(f"{self.folder} is trained to its end: nothing to do")
            matches = []
            if self.done >= 1.0 and not self._judged():
                elapsed_s = self.elapsed_s
                matches = self._matches.finish(self._say, self._stopped)
                for line in matches:
                    self._log(line, elapsed_s)
        finally:
            self._learner.kill()
            self._matches.kill()
            if self._board:
                self._board.close()
            self._commit()
            self._writer.sync()
        new_rounds = self._rounds - self._rounds_before
        play_waits = self._waited_s / max(self._waited_s + self._played_s, 1e-9)
        learner_waits = self._report.get("learner_waits", 0.0)
        return {
            "run": str(self.folder),
            "complete": self.done >= 1.0 and not self._matches.broken_off,
            "rounds": self._rounds,
            "new_rounds": new_rounds,
            "elapsed_s": self._trained_s,
            "steps": self._report.get("steps", 0),
            "rounds_per_min": new_rounds * 60 / max(self._trained_s - self._elapsed_before, 1e-9),
            "steps_per_s": self._report.get("steps_per_s", 0.0),
            "self_play_waits": play_waits,
            "learner_waits": learner_waits,
            "replay_ratio": self.config.replay_ratio,
            "balanced_replay_ratio": balanced_replay_ratio(self.config.replay_ratio, play_waits, learner_waits)
            if self._waited_s + self._played_s >= BALANCED_S
            else None,
            "learner_restarts": self._learner.restarts,
            "judge_failures": self._matches.failures,
            "checkpoint": str(newest_checkpoint(self.folder) or ""),
            "matches": [line["match"] for line in matches if "match" in line],
        }

    def _train(self) -> None:
        config = self.config
        self._writer.folder.write_config(to_toml(resolved(config)))
        version = self._matches.gate.best_version if config.gate else newest_version(self.folder)
        self._learner.start(self.done, version, refill=self._rounds > 0)
        in_progress: dict[int, list[bytes]] = {}  # games at the end of a stage
        while self.done < 1.0 and not self._stopped():
            stage = config.stage(self.done)
            play = config.self_play(stage, self._weights(version))
            left = ENDLESS if config.rounds is None or config.games else config.rounds - self._rounds
            units = itertools.islice(self._ledger.missing(), left)
            with Fleet(play, units, left, version, in_progress) as fleet:
                self._seat_older(fleet)
                meter, rounds_before = Meter(fleet, left), self._rounds
                try:
                    while (
                        not fleet.done and self.done < 1.0 and config.stage(self.done) == stage and not self._stopped()
                    ):
                        self._waiting += fleet.poll(TICK_S)
                        self._attend(fleet, meter, rounds_before)
                finally:
                    self._waiting += fleet.close()
                    self._commit()
                    self._played_s += meter.played_s
                    self._waited_s += meter.waited_s
                version, in_progress = fleet.version, fleet.in_progress
            del fleet, meter  # the memory of both is the next one's: there may not be room for two
        self._end_learner(version)
        self._trained_s = self.elapsed_s
        self._log({"rounds": self._rounds, "version": version, "learner": self._report})

    def _weights(self, version: int) -> Path | None:
        """The weights that self-play starts with: the newest, or with a gate those that passed it last."""
        if self.config.gate:
            return self._matches.gate.best_path()
        return weights_path(self.folder, version) if version else None

    # --- what happens all the time -------------------------------------------------------------------

    def _commit(self) -> None:
        """Write what has come; only then the learner may have it."""
        if self._waiting:
            self._rounds += self._writer.write(self._waiting)
            for unit, _ in self._waiting:
                self._ledger.add(unit)
            self._learner.feed(self._waiting)
            self._waiting = []

    def _attend(self, fleet: Fleet, meter: Meter, rounds_before: int) -> None:
        """Do everything that is due. `rounds_before` is how many rounds the run had when `fleet` and `meter` began."""
        now = time.monotonic()
        while fleet.events:
            line = fleet.events.popleft()
            if "serves weights" not in line:
                self._say(line)
        if now - self._committed_at >= COMMIT_S:
            self._commit()
            self._committed_at = now
        if now - self._told_at >= TELL_S:
            self._learner.tell(self.done, fleet.version)
            self._told_at = now
        if stalled := self._learner.kill_stalled(fleet.config.stall_s, self._learner_is_behind):
            self._say(stalled)
        if not self._learner.poll():
            self._hear(fleet)
            self._say(self._learner.reap())
            self._learner_is_behind = self._learner_is_ready = False
            self._learner.start(self.done, fleet.version, refill=True)
        self._hear(fleet)
        meter.attend()
        fleet.paused = self._learner_is_behind or self._learner.behind_bytes > MOST_BEHIND_BYTES
        before = self._matches.gate.best
        for match in self._matches.poll(self.elapsed_s, self._say):
            self._log(match)
        if self._matches.gate.best != before and (path := self._matches.gate.best_path()):
            fleet.publish(path)
            self._log({"gate": {"steps": self._matches.gate.best, "version": fleet.version}})
        if now - self._shown_at >= 0.1:
            play = meter.progress(0, self._rounds - rounds_before)
            waits_for, waits_s = self._what_play_waits_for(fleet, meter, play)
            self._show(
                TrainProgress(
                    self.done,
                    self.elapsed_s,
                    self._left_s(play.rounds_per_min * (1 - meter.waits)),
                    self._rounds,
                    play,
                    meter.waits,
                    waits_for,
                    waits_s,
                    self._report,
                    list(self._matches.last.values()),
                    self._matches.rating,
                )
            )
            self._shown_at = now
            if now - self._metrics_at >= METRICS_S:
                self._log(
                    {
                        "rounds": self._rounds,
                        "rounds_per_min": play.rounds_per_min,
                        "evaluations_per_s": play.evaluations_per_s,
                        "mean_batch_rows": play.mean_batch_rows,
                        "inference_busy": play.inference_busy,
                        "workers_busy": play.workers_busy,
                        "version": fleet.version,
                        "self_play_waits": meter.waits,
                        "learner": self._report,
                    }
                )
                self._writer.sync()
                self._metrics_at = now

    def _what_play_waits_for(self, fleet: Fleet, meter: Meter, play: Progress) -> tuple[str | None, float]:
        """What keeps self-play from playing, None where it plays, and for how many seconds it has."""
        now = time.monotonic()
        if meter.waits_since is not None:
            return "the learner" if self._learner_is_ready else "the learner to start", now - meter.waits_since
        if play.evaluations_per_s == 0 and not fleet.ready:
            return "the inference processes to start", now - meter.start
        return None, 0.0

    def _hear(self, fleet: Fleet | None) -> None:
        """Act on what the learner says."""
        while self._learner.events:
            match self._learner.events.popleft():
                case WeightsPublished(path, version) if fleet is not None:
                    if not self.config.gate:
                        fleet.publish(path, version)
                    if fleet.ready:
                        remove_old_weights(self.folder, WEIGHTS_KEPT)
                case CheckpointSaved():
                    self._writer.sync()  # it has learned from these rounds
                    if fleet is not None:
                        self._seat_older(fleet)
                case PauseWanted(on):
                    self._learner_is_behind = on
                case Learned() as learned:
                    self._report = dataclasses.asdict(learned)
                    self._report |= self._report.pop("means")
                case Finished(steps):
                    self._report["steps"] = steps
                    self._learner_stopped = True
                case Ready(steps, rows):
                    self._learner_is_ready = True
                    if steps:
                        self._say(f"the learner goes on from step {steps:,} with {rows:,} positions")

    def _seat_older(self, fleet: Fleet) -> None:
        """Give the seats that `others` leaves to older checkpoints to one of them, another each time."""
        saved = checkpoints(self.folder)
        if saved and fleet.config.other_network() == OLDER:
            fleet.seat_other(saved[int(np.random.default_rng((self.config.seed, len(saved))).integers(len(saved)))])

    def _end_learner(self, version: int) -> None:
        """Let the learner save its last state; where the rounds have ended the run, after it has learned from all.

        Raises WorkerDied where it does not.
        """
        config = self.config
        told_at = -math.inf

        def to_the_end() -> bool:
            in_time = config.minutes is None or self.elapsed_s + config.closing_s < 60 * config.minutes
            return config.rounds is not None and self._rounds >= config.rounds and in_time and not self._stopped()

        while not self._learner_stopped:
            now = time.monotonic()
            if self._learner.stuck_at_end(STOP_S):
                raise WorkerDied(f"the learner did nothing for {STOP_S:g} s at its end; what it saved before stays")
            if now - told_at >= TELL_S:
                self._learner.end(self.done, version, to_the_end())
                told_at = now
            alive = self._learner.poll()
            self._hear(None)
            if not alive and not self._learner_stopped:
                self._say(self._learner.reap())
                self._learner.start(self.done, version, refill=True)
                told_at = -math.inf
            time.sleep(TICK_S)

    def _log(self, line: dict[str, Any], elapsed_s: float | None = None) -> None:
        line = {"elapsed_s": self.elapsed_s if elapsed_s is None else elapsed_s} | line
        self._writer.folder.append_metrics(line)
        if self._board:
            self._board.add(line, int(self._report.get("steps", 0)))


def resolved(config: TrainConfig) -> dict[str, Any]:
    """The settings as the run uses them on this machine, in the form that `--config` takes.

    What is not the same in every stage stays as it was given.
    """
    plans = [plan_fleet(config.self_play(stage, None), ENDLESS) for stage in range(len(config.stages()))]

    def device(names: list[str]) -> str:
        return f"cpu*{len(names)}" if set(names) == {"cpu"} else ",".join(names)

    sizes = [{"device": device(plan.devices), "workers": plan.workers, "lanes": plan.lanes,
              "max_batch": plan.max_batch} for plan in plans]  # fmt: skip
    same = {name: value for name, value in sizes[0].items() if all(size[name] == value for size in sizes)}
    return dataclasses.asdict(config) | same | {"learner": config.learner_device()}


def train(
    config: TrainConfig,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[TrainProgress], None] = lambda progress: None,
    stopped: Callable[[], bool] = lambda: False,
    started: float | None = None,
) -> dict[str, Any]:
    """Train in `folder` until the time or the rounds are reached; returns the summary of `--json`.

    A folder with a run of the same settings is continued. The time counts from `started` on, by
    time.monotonic() (default: this call). Raises ConfigError, RecordError, SegmentError, WorkerDied.
    """
    config.check_devices()
    for name in config.opponents.split(","):
        if name:
            make_agent(name)
    if config.tensorboard:
        Board.check(folder)
    resolved(config)  # refuses sizes that cannot be before anything is made
    started = time.monotonic() if started is None else started
    with run_folder(folder, config.identity()) as writer:
        return Run(config, folder, writer, say, show, stopped, started)()


def balanced_replay_ratio(ratio: float, play_waits: float, learner_waits: float) -> float | None:
    """The replay ratio at which neither half would wait, of which one waited at `ratio`, both given as shares.

    Each half is taken to do as much in the time in which it waited as in the rest. None where both have waited
    about as long, or hardly.
    """
    more, less = max(play_waits, learner_waits), min(play_waits, learner_waits)
    if more < MUCH_WAITING or less > more / 2:
        return None
    wanted = ratio * (1 - play_waits) / max(1 - learner_waits, 1e-9)
    return float(f"{min(max(wanted, 0.01), 100.0):.2g}")
