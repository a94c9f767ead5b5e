"""A training run: self-play, the learner and matches, until the budget is spent.

A round goes from the engine to the recorder, which commits it and hands it to the learner; the learner's weights go
back to the engine. Read next: budget.py (how long), learning.py (the learner), played_weights.py (what self-play gets),
match_runner.py (matches), gate.py, runs/recorder.py (what is kept).
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmzero.engine.fleet import Fleet
from shmzero.engine.interface import Engine, StartEngine
from shmzero.engine.progress import Every, Meter, Progress
from shmzero.learner.messages import CheckpointSaved, WeightsPublished
from shmzero.matches.agents import make_agent
from shmzero.runs.checkpoints import newest_checkpoint
from shmzero.runs.folder import RunFolder
from shmzero.runs.metrics import Board, read_metrics
from shmzero.runs.record_writer import RecordWriter, run_folder
from shmzero.runs.recorder import Recorder
from shmzero.settings import to_toml
from shmzero.training.budget import Budget
from shmzero.training.config import TrainConfig
from shmzero.training.learning import FilesWritten, Learning
from shmzero.training.match_runner import MatchRunner
from shmzero.training.plan import ENDLESS, TrainPlan, resolve_training
from shmzero.training.played_weights import PlayedWeights
from shmzero.training.progress import TrainProgress

TICK_S = 0.02
COMMIT_S = 0.25
SHOW_S = 0.1
METRICS_S = 5.0
MUCH_WAITING = 0.25
BALANCED_S = 30.0
"""When one half has waited for so large a share of at least such a time, the summary says what would balance them."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Self-play of one stage, for as long as its processes live."""

    number: int
    engine: Engine
    meter: Meter
    rounds_before: int
    """Rounds that the run had when the stage began."""

    def waits_for(self, play: Progress, learner_is_ready: bool) -> tuple[str | None, float]:
        """What keeps self-play from playing, None where it plays, and for how many seconds it has."""
        now = time.monotonic()
        if self.meter.waits_since is not None:
            return "the learner" if learner_is_ready else "the learner to start", now - self.meter.waits_since
        if play.evaluations_per_s == 0 and not self.engine.ready:
            return "the inference processes to start", now - self.meter.start
        return None, 0.0


class Run:
    """One training run in its folder: self-play stage by stage, beside it the learner and matches."""

    def __init__(
        self,
        plan: TrainPlan,
        folder: Path,
        writer: RecordWriter,
        say: Callable[[str], None],
        show: Callable[[TrainProgress], None],
        stopped: Callable[[], bool],
        started: float,
        start: StartEngine = Fleet,
    ) -> None:
        """`writer` is the folder's; `started`: when the time began, by time.monotonic(); `start` makes who plays."""
        self.plan = plan
        self.config = config = plan.config
        self.folder = folder
        self._say, self._show, self._stopped = say, show, stopped
        self._start = start
        names = writer.folder
        before = read_metrics(names.metrics) if names.metrics.exists() else []
        self._budget = Budget(config.length, max((line["elapsed_s"] for line in before), default=0.0), started)
        self._trained_s = self._budget.elapsed_before_s
        self._learning = Learning(plan.learner, folder, say)
        board = Board(names.tensorboard) if config.tensorboard else None
        self._recorder = Recorder(writer, range(ENDLESS), "unit", COMMIT_S, self._learning.feed, board)
        self._matches = MatchRunner(config, folder)
        self._matches.recall(before)
        self._weights = PlayedWeights(config, folder, self._matches.gate)
        self._played_s = self._waited_s = 0.0  # of the stages before this one
        self._show_due = Every(SHOW_S, at_once=True)
        self._metrics_due = Every(METRICS_S, at_once=True)

    def __call__(self) -> dict[str, Any]:
        """Train to the end; returns the summary of `--json`."""
        try:
            if self.done < 1.0:
                self._train()
            elif self._last_matches_are_kept():
                self._say(f"{self.folder} is trained to its end: nothing to do")
            matches = self._play_last_matches()
        finally:
            self._learning.kill()
            self._matches.kill()
            self._recorder.close()
        return self._summary(matches)

    @property
    def done(self) -> float:
        """Share of the run that is done."""
        return self._budget.done(self._recorder.rounds)

    # --- stages ---------------------------------------------------------------------------------------

    def _train(self) -> None:
        self._recorder.writer.folder.write_config(to_toml(self.plan.dump()))
        self._learning.start(self.done, self._weights.version, refill=self._recorder.rounds > 0)
        while self.done < 1.0 and not self._stopped():
            self._play_stage(self.config.search.stage(self.done))
        while not self._learning.stopped:
            to_the_end = self._budget.ended_by_rounds(self._recorder.rounds) and not self._stopped()
            self._act(self._learning.attend_end(self.done, self._weights.version, to_the_end), None)
            time.sleep(TICK_S)
        self._trained_s = self._budget.elapsed_s
        report = {"rounds": self._recorder.rounds, "version": self._weights.version, "learner": self._learning.report}
        self._log(report)

    def _play_stage(self, number: int) -> None:
        """Play until the stage or the run is over. No other engine lives: there may not be memory for two."""
        config, recorder = self.config, self._recorder
        play = self.plan.stages[number].with_checkpoint(self._weights.path())
        rounds = config.length.rounds
        left = ENDLESS if rounds is None or config.deals.whole_games else rounds - recorder.rounds
        units = itertools.islice(recorder.missing(), left)
        with self._start(play, units, left, self._weights.version, recorder.in_progress) as engine:
            self._weights.seat_older(engine)
            stage = Stage(number, engine, Meter(engine, left), recorder.rounds)
            try:
                while self._goes_on(stage):
                    recorder.poll(engine, TICK_S)
                    self._attend(stage)
            finally:
                recorder.finish(engine)
                self._played_s += stage.meter.played_s
                self._waited_s += stage.meter.waited_s
            self._weights.version = engine.version

    def _goes_on(self, stage: Stage) -> bool:
        done = self.done
        over = stage.engine.done or done >= 1.0 or self.config.search.stage(done) != stage.number
        return not over and not self._stopped()

    # --- what happens all the time --------------------------------------------------------------------

    def _attend(self, stage: Stage) -> None:
        """Do everything that is due while self-play goes on."""
        engine = stage.engine
        while engine.events:
            line = engine.events.popleft()
            if "serves weights" not in line:
                self._say(line)
        self._act(self._learning.attend(self.done, engine.version, self.config.processes.stall_s), engine)
        stage.meter.attend()
        engine.paused = self._learning.is_behind
        self._attend_matches(engine)
        if self._show_due():
            self._report(stage)

    def _act(self, events: list[FilesWritten], engine: Engine | None) -> None:
        """Act on the learner's new weights and checkpoints; `engine` is None once self-play is over."""
        for event in events:
            match event:
                case WeightsPublished() if engine is not None:
                    self._weights.publish(engine, event)
                case CheckpointSaved():
                    self._recorder.sync()  # it has learned from these rounds
                    if engine is not None:
                        self._weights.seat_older(engine)

    def _attend_matches(self, engine: Engine) -> None:
        """Keep the results of matches; self-play gets a checkpoint that has passed the gate."""
        gate, before = self._matches.gate, self._matches.gate.best
        for line in self._matches.poll(self._budget.elapsed_s, self._say):
            self._log(line)
        if gate.best != before and (path := gate.best_path()):
            engine.publish(path)
            self._log({"gate": {"steps": gate.best, "version": engine.version}})

    def _report(self, stage: Stage) -> None:
        """Show where the run stands, and add it to the metrics where that is due."""
        rounds, waits = self._recorder.rounds, stage.meter.waits
        play = stage.meter.progress(0, rounds - stage.rounds_before)
        waits_for, waits_s = stage.waits_for(play, self._learning.is_ready)
        self._show(
            TrainProgress(
                done=self.done,
                elapsed_s=self._budget.elapsed_s,
                left_s=self._budget.left_s(rounds, play.rounds_per_min * (1 - waits)),
                rounds=rounds,
                play=play,
                play_waits=waits,
                waits_for=waits_for,
                waits_s=waits_s,
                learner=self._learning.report,
                matches=list(self._matches.last.values()),
                rating=self._matches.rating,
            )
        )
        if not self._metrics_due():
            return
        self._log(
            {
                "rounds": rounds,
                "rounds_per_min": play.rounds_per_min,
                "evaluations_per_s": play.evaluations_per_s,
                "mean_batch_rows": play.mean_batch_rows,
                "inference_busy": play.inference_busy,
                "workers_busy": play.workers_busy,
                "version": stage.engine.version,
                "self_play_waits": waits,
                "learner": self._learning.report,
            }
            | ({"nodes": dataclasses.asdict(play)["nodes"]} if play.nodes else {})
        )
        self._recorder.sync()

    def _log(self, line: dict[str, Any], elapsed_s: float | None = None) -> None:
        """Add a line to the metrics, of now or of such a time of the run."""
        time_of_run = {"elapsed_s": self._budget.elapsed_s if elapsed_s is None else elapsed_s}
        self._recorder.log(time_of_run | line, int(self._learning.report.get("steps", 0)))

    # --- the end --------------------------------------------------------------------------------------

    def _last_matches_are_kept(self) -> bool:
        """Whether the last checkpoint's matches and its rating are in the metrics, as far as they are wanted."""
        checkpoint, wanted = newest_checkpoint(self.folder), self.config.matches
        if checkpoint is None or not self._matches.wanted:
            return True
        steps, lines = int(checkpoint.stem), read_metrics(RunFolder(self.folder).metrics)
        last = [line["match"] for line in lines if "match" in line and line["match"]["steps"] == steps]
        played = {match["opponent"] for match in last if match["mode"] == "rest"}
        rated = any(line["rating"]["steps"] == steps for line in lines if "rating" in line)
        return played.issuperset(wanted.opponents()) and (rated or not wanted.rating)

    def _play_last_matches(self) -> list[dict[str, Any]]:
        """Of a run that is over the matches that are not kept yet; returns their lines of the metrics."""
        if self.done < 1.0 or self._last_matches_are_kept():
            return []
        elapsed_s = self._budget.elapsed_s
        lines = self._matches.finish(self._say, self._stopped)
        for line in lines:
            self._log(line, elapsed_s)
        return lines

    def _summary(self, matches: list[dict[str, Any]]) -> dict[str, Any]:
        recorder, report, ratio = self._recorder, self._learning.report, self.config.learning.replay_ratio
        session_s, seen_s = self._trained_s - self._budget.elapsed_before_s, self._waited_s + self._played_s
        play_waits, learner_waits = self._waited_s / max(seen_s, 1e-9), report.get("learner_waits", 0.0)
        balanced = balanced_replay_ratio(ratio, play_waits, learner_waits) if seen_s >= BALANCED_S else None
        return {
            "run": str(self.folder),
            "complete": self.done >= 1.0 and not self._matches.broken_off,
            "rounds": recorder.rounds,
            "new_rounds": recorder.new_rounds,
            "elapsed_s": self._trained_s,
            "steps": report.get("steps", 0),
            "rounds_per_min": recorder.new_rounds * 60 / max(session_s, 1e-9),
            "steps_per_s": report.get("steps_per_s", 0.0),
            "self_play_waits": play_waits,
            "learner_waits": learner_waits,
            "replay_ratio": ratio,
            "balanced_replay_ratio": balanced,
            "learner_restarts": self._learning.handle.restarts,
            "judge_failures": self._matches.failures,
            "checkpoint": str(newest_checkpoint(self.folder) or ""),
            "matches": [line["match"] for line in matches if "match" in line],
        }


def train(
    config: TrainConfig,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[TrainProgress], None] = lambda progress: None,
    stopped: Callable[[], bool] = lambda: False,
    started: float | None = None,
    start: StartEngine = Fleet,
) -> dict[str, Any]:
    """Train in `folder` until the time or the rounds are reached; returns the summary of `--json`.

    A folder with a run of the same settings is continued. The time counts from `started` on, by
    time.monotonic() (default: this call). `start` makes the engine of self-play. Raises ConfigError, RecordError,
    SegmentError, WorkerDied.
    """
    config.check_devices()
    for name in config.matches.opponents():
        make_agent(name)
    if config.tensorboard:
        Board.check(folder)
    plan = resolve_training(config)
    started = time.monotonic() if started is None else started
    with run_folder(folder, config.identity(), config.old_names) as writer:
        return Run(plan, folder, writer, say, show, stopped, started, start)()


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
