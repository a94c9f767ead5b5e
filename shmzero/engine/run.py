"""A run of self-play: settings become a Fleet, and finished units go into the run folder."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.fleet import Fleet
from shmzero.engine.progress import Meter, Progress
from shmzero.files import digest_of, file_stamp
from shmzero.machine import has_cuda, has_nvidia
from shmzero.runs.record_writer import RecordWriter, run_folder
from shmzero.settings import to_toml

DEFAULT_ROUNDS = 100
TICK_S = 0.05
COMMIT_S = 0.5
"""Finished rounds are committed at least this often."""
METRICS_S = 5.0


def run(
    config: SelfPlayConfig,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[Progress], None] = lambda progress: None,
    stopped: Callable[[], bool] = lambda: False,
    started: float | None = None,
) -> dict[str, Any]:
    """Play until the folder holds what is asked for; returns the summary of `--json`.

    `say` gets lines worth keeping, `show` the state about ten times a second, `stopped` asks whether
    to leave early: finished rounds are committed first. `started` is when the command began, by
    time.monotonic() (default: with this call). Raises ConfigError, RecordError, SegmentError, WorkerDied.
    """
    started = time.monotonic() if started is None else started
    config.check_devices()
    with run_folder(folder, config.identity()) as writer:
        return _run(config, folder, writer, say, show, stopped, started)


def _run(
    config: SelfPlayConfig,
    folder: Path,
    writer: RecordWriter,
    say: Callable[[str], None],
    show: Callable[[Progress], None],
    stopped: Callable[[], bool],
    started: float,
) -> dict[str, Any]:
    wanted = config.games or config.rounds or DEFAULT_ROUNDS
    first, end = config.first, config.first + wanted
    done = writer.units()
    missing = wanted - (done.count_below(end) - done.count_below(first))
    summary: dict[str, Any] = {"records": str(writer.path), "rounds": writer.count(), "new_rounds": 0}
    if missing == 0:
        say(f"{folder} already holds {wanted} {'games' if config.games else 'rounds'}: nothing to do")
        return summary | {
            "complete": True,
            "rounds_per_min": 0.0,
            "distinct_evaluations_per_s": 0.0,
            "mean_batch_rows": 0.0,
        }
    begun = {unit: records for unit, records in writer.in_progress().items() if first <= unit < end}
    units = itertools.takewhile(lambda unit: unit < end, done.missing(first))
    checkpoint_seen = file_stamp(config.checkpoint)  # before it is read: what replaces it meanwhile is another
    with Fleet(config, units, missing, _first_version(config, writer), begun) as fleet:
        writer.set_weights(fleet.served.version, fleet.served.digest())
        if not writer.folder.config.exists():
            writer.folder.write_config(to_toml(_resolved(config, fleet)))
        plan = fleet.plan
        say(
            f"{plan.workers} workers x {plan.lanes} lanes, {len(plan.devices)} inference processes "
            f"({', '.join(plan.devices)}), batches up to {plan.max_batch} rows"
        )
        if config.device == "auto" and config.evaluator == "net" and has_nvidia() and not has_cuda():
            say("there is an NVIDIA device, and torch is installed without CUDA: the network runs on the CPU")
        capped = config.search().to_core().wave_leaves
        if capped < config.leaves_in_flight:
            say(f"leaves in flight: {capped} instead of {config.leaves_in_flight}, a quarter of the simulations")
        if config.evaluator == "net" and config.checkpoint is None:
            say(f"no --checkpoint: the network is freshly initialised from seed {config.seed}")
        meter = Meter(fleet, missing)
        waiting: list[tuple[int, list[bytes]]] = []
        committed = {unit: len(records) for unit, records in begun.items()}  # rounds of games in progress
        units_done = new_rounds = record_bytes = 0
        first_round_s: float | None = None
        committed_at = metrics_at = shown_at = meter.start
        served = fleet.served

        def take(finished: list[tuple[int, list[bytes]]]) -> None:
            nonlocal units_done, first_round_s
            units_done += len(finished)
            waiting.extend(finished)
            if first_round_s is None and any(records for _, records in uncommitted()):
                first_round_s = time.monotonic() - started
                writer.folder.write_config(to_toml(_resolved(config, fleet)))

        def uncommitted() -> list[tuple[int, list[bytes]]]:
            parts = [*waiting, *fleet.in_progress.items()]
            return [(unit, records[committed.get(unit, 0) :]) for unit, records in parts]

        def commit() -> None:
            nonlocal new_rounds, record_bytes, committed
            if found := [part for part in uncommitted() if part[1]]:
                new_rounds += writer.write(found)
                record_bytes += sum(len(record) for _, records in found for record in records)
            committed = {unit: len(records) for unit, records in fleet.in_progress.items()}
            waiting.clear()

        try:
            while not fleet.done and not stopped():
                take(fleet.poll(TICK_S))
                while fleet.events:
                    say(fleet.events.popleft())
                if fleet.served is not served:
                    served = fleet.served
                    writer.set_weights(served.version, served.digest())
                now = time.monotonic()
                if now - committed_at >= COMMIT_S or len(waiting) >= 10_000:
                    commit()
                    committed_at = now
                if now - shown_at >= 0.1:
                    rounds = new_rounds + sum(len(records) for _, records in uncommitted())
                    progress = meter.progress(units_done, rounds)
                    show(progress)
                    shown_at = now
                    if now - metrics_at >= METRICS_S:
                        writer.folder.append_metrics(dataclasses.asdict(progress))
                        writer.sync()
                        metrics_at = now
                        if config.follow and file_stamp(config.checkpoint) != checkpoint_seen:
                            checkpoint_seen = file_stamp(config.checkpoint)
                            assert config.checkpoint is not None
                            fleet.publish(config.checkpoint)
            play_s = time.monotonic() - meter.start
            counters = fleet.counters()
        finally:
            take(fleet.close())
            commit()
            writer.sync()
    progress_rounds = max(new_rounds, 1)
    return summary | {
        "rounds": writer.count(),
        "new_rounds": new_rounds,
        "complete": fleet.done,
        "seconds": play_s,
        "rounds_per_min": new_rounds * 60 / play_s,
        "distinct_evaluations_per_s": counters["worker_rows"] / play_s,
        "mean_batch_rows": counters["rows"] / max(counters["batches"], 1),
        "simulations_per_decision": counters["simulations"] / max(counters["decisions"], 1),
        "rows_per_simulation": counters["worker_rows"] / max(counters["simulations"], 1),
        "terminal_share": counters["terminals"] / max(counters["simulations"], 1),
        "record_bytes_per_round": record_bytes / progress_rounds,
        "first_round_s": first_round_s,
        "restarts": fleet.restarts,
        "weights_version": served.version,
    }


def _first_version(config: SelfPlayConfig, writer: RecordWriter) -> int:
    """The version of the weights that a run begins with: that of last time, or the next where they are others."""
    last = writer.weights()
    if last is None:
        return 0
    version, digest = last
    now = None
    with suppress(OSError):  # the fleet says what is wrong
        now = digest_of(config.checkpoint) if config.checkpoint else None
    return version if digest == now else version + 1


def _resolved(config: SelfPlayConfig, fleet: Fleet) -> dict[str, Any]:
    """The settings as the run uses them, in the form `--config` takes."""
    plan = fleet.plan
    search = config.search()
    devices = plan.devices
    same_cpu = all(name == "cpu" for name in devices)
    return dataclasses.asdict(config) | {
        "determinizations": search.determinizations,
        "simulations": search.simulations,
        "workers": plan.workers,
        "device": f"cpu*{len(devices)}" if same_cpu else ",".join(devices),
        "inference_threads": plan.threads,
        "max_batch": plan.max_batch,
    }
