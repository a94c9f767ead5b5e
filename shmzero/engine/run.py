"""A run of self-play: settings become an engine, and what it finishes goes into the run folder.

Read next: interface.py and fleet.py (who plays), runs/recorder.py (where it goes).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.fleet import Fleet
from shmzero.engine.interface import Engine, StartEngine
from shmzero.engine.plan import FleetPlan, resolve
from shmzero.engine.progress import Every, Meter, Progress
from shmzero.engine.weights import Weights
from shmzero.files import digest_of, file_stamp
from shmzero.machine import has_cuda, has_nvidia
from shmzero.runs.record_writer import RecordWriter, run_folder
from shmzero.runs.recorder import Recorder
from shmzero.settings import to_toml

TICK_S = 0.05
SHOW_S = 0.1
METRICS_S = 5.0


def run(
    config: SelfPlayConfig,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[Progress], None] = lambda progress: None,
    stopped: Callable[[], bool] = lambda: False,
    started: float | None = None,
    start: StartEngine = Fleet,
) -> dict[str, Any]:
    """Play until the folder holds what is asked for; returns the summary of `--json`.

    `say` gets lines worth keeping, `show` the state about ten times a second, `stopped` asks whether
    to leave early: finished rounds are committed first. `started` is when the command began, by
    time.monotonic() (default: with this call). `start` makes the engine that plays. Raises ConfigError, RecordError,
    SegmentError, WorkerDied.
    """
    started = time.monotonic() if started is None else started
    if config.processes.cluster is None:
        config.inference.check_devices()
    plan = resolve(config)
    with run_folder(folder, config.identity(), config.old_names) as writer:
        return Run(plan, writer, say, show, stopped, started, start)()


class Run:
    """One run of self-play in its folder."""

    def __init__(
        self,
        plan: FleetPlan,
        writer: RecordWriter,
        say: Callable[[str], None],
        show: Callable[[Progress], None],
        stopped: Callable[[], bool],
        started: float,
        start: StartEngine = Fleet,
    ) -> None:
        """`writer` is the folder's; see `run` for the others."""
        self.plan = plan
        self._start = start
        self._say, self._show, self._stopped = say, show, stopped
        self._writer = writer
        self._started = started
        length = plan.config.length
        self._recorder = Recorder(writer, range(length.first, length.first + length.units()))
        self._served: Weights | None = None
        """The weights that the folder's records name as playing."""
        self._first_round_s: float | None = None
        """When the first round was there, after the command began."""
        self._show_due = Every(SHOW_S)
        self._metrics_due = Every(METRICS_S)
        self._checkpoint = plan.config.net.checkpoint
        self._checkpoint_seen = file_stamp(self._checkpoint)  # before it is read: what replaces it is another

    def __call__(self) -> dict[str, Any]:
        """Play what is missing; returns the summary of `--json`."""
        recorder, missing = self._recorder, self._recorder.num_missing()
        if missing == 0:
            return self._nothing_to_do()
        version = _first_version(self._checkpoint, self._writer)
        with self._start(self.plan, recorder.missing(), missing, version, recorder.in_progress) as engine:
            self._note_weights(engine)
            if not self._writer.folder.config.exists():
                self._write_config()
            for line in [*engine.notices(), *notices(self.plan)]:
                self._say(line)
            meter = Meter(engine, missing)
            try:
                while not engine.done and not self._stopped():
                    self._attend(engine, meter)
                play_s, counters = time.monotonic() - meter.start, engine.counters()
            finally:
                recorder.finish(engine)
                self._note_first_round()
        return self._summary(engine, play_s, counters)

    def _attend(self, engine: Engine, meter: Meter) -> None:
        """Take what the engine has finished, and do what is due."""
        self._recorder.poll(engine, TICK_S)
        self._note_first_round()
        self._note_weights(engine)
        while engine.events:
            self._say(engine.events.popleft())
        if not self._show_due():
            return
        recorder = self._recorder
        progress = meter.progress(recorder.finished_units, recorder.new_rounds + recorder.waiting_rounds())
        self._show(progress)
        if self._metrics_due():
            recorder.log(progress.as_metrics())
            recorder.sync()
            self._follow_checkpoint(engine)

    def _follow_checkpoint(self, engine: Engine) -> None:
        """Publish the checkpoint's file where it has changed and that is wanted."""
        checkpoint = self._checkpoint
        if checkpoint is None or not self.plan.config.net.follow or file_stamp(checkpoint) == self._checkpoint_seen:
            return
        self._checkpoint_seen = file_stamp(checkpoint)
        engine.publish(checkpoint)

    def _note_weights(self, engine: Engine) -> None:
        """Have the folder name the weights that play from now on."""
        if engine.served is not self._served:
            self._served = engine.served
            self._writer.set_weights(self._served.version, self._served.digest())

    def _note_first_round(self) -> None:
        """With its first round a run gets its settings into the folder: they are those that it was played with."""
        recorder = self._recorder
        if self._first_round_s is None and (recorder.new_rounds or recorder.waiting_rounds()):
            self._first_round_s = time.monotonic() - self._started
            self._write_config()

    def _write_config(self) -> None:
        self._writer.folder.write_config(to_toml(self.plan.dump()))

    def _nothing_to_do(self) -> dict[str, Any]:
        wanted, kind = len(self._recorder.units), "games" if self.plan.config.length.games else "rounds"
        self._say(f"{self._writer.folder.path} already holds {wanted} {kind}: nothing to do")
        return {
            "records": str(self._writer.path),
            "rounds": self._recorder.rounds,
            "new_rounds": 0,
            "complete": True,
            "rounds_per_min": 0.0,
            "distinct_evaluations_per_s": 0.0,
            "mean_batch_rows": 0.0,
        }

    def _summary(self, engine: Engine, play_s: float, counters: dict[str, int]) -> dict[str, Any]:
        """`play_s`: seconds of playing; `counters`: the engine's at their end."""
        recorder = self._recorder
        nodes = {name: dataclasses.asdict(report) for name, report in engine.by_node().items()}
        return {
            "records": str(self._writer.path),
            "rounds": recorder.rounds,
            "new_rounds": recorder.new_rounds,
            "complete": engine.done,
            "seconds": play_s,
            "rounds_per_min": recorder.new_rounds * 60 / play_s,
            "distinct_evaluations_per_s": counters["worker_rows"] / play_s,
            "mean_batch_rows": counters["rows"] / max(counters["batches"], 1),
            "simulations_per_decision": counters["simulations"] / max(counters["decisions"], 1),
            "rows_per_simulation": counters["worker_rows"] / max(counters["simulations"], 1),
            "terminal_share": counters["terminals"] / max(counters["simulations"], 1),
            "record_bytes_per_round": recorder.record_bytes / max(recorder.new_rounds, 1),
            "first_round_s": self._first_round_s,
            "restarts": engine.restarts,
            "weights_version": engine.served.version,
        } | ({"nodes": nodes} if nodes else {})


def notices(plan: FleetPlan) -> list[str]:
    """What a run says before it plays: whatever is otherwise than somebody may think."""
    lines = []
    config, in_flight = plan.config, plan.config.search.leaves_in_flight
    if plan.asked.inference.device == "auto" and config.net.evaluator == "net" and has_nvidia() and not has_cuda():
        lines.append("there is an NVIDIA device, and torch is installed without CUDA: the network runs on the CPU")
    capped = plan.search.to_core().wave_leaves
    if capped < in_flight:
        lines.append(f"leaves in flight: {capped} instead of {in_flight}, a quarter of the simulations")
    if config.net.evaluator == "net" and config.net.checkpoint is None:
        lines.append(f"no --checkpoint: the network is freshly initialised from seed {config.seed}")
    return lines


def _first_version(checkpoint: Path | None, writer: RecordWriter) -> int:
    """The version of the weights that a run begins with: that of last time, or the next where they are others."""
    last = writer.weights()
    if last is None:
        return 0
    version, digest = last
    now = None
    with suppress(OSError):  # the engine says what is wrong
        now = digest_of(checkpoint) if checkpoint else None
    return version if digest == now else version + 1
