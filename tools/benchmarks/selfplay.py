"""Benchmark `selfplay`: a real run, the engine, its roofline and what it replaces, in turns."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from shmzero import SearchConfig, _core, play_rounds
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.plan import resolve
from shmzero.errors import ConfigError, WorkerDied
from shmzero.machine import cores
from shmzero.mcts.config import PRESETS
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.settings import to_toml
from tools.benchmarks import before
from tools.benchmarks.engines import Engine, Rates, device_text, engine_options, settings_of
from tools.benchmarks.measure import PLAN_ROUNDS_PER_MIN, Result, Spread, interleaved, ratio
from tools.benchmarks.options import quick_flag, repeats_flag
from tools.benchmarks.roofline import Roofline

ROOFLINE = "roofline"


def measure(given: argparse.Namespace) -> list[Result]:
    """A real run from the command on, then the engine, the roofline and what it replaces, in turns."""
    seconds = given.seconds or (3.0 if given.quick else 12.0)
    configs = [settings_of(given, preset=preset) for preset in given.presets]
    results: list[Result] = []
    with ExitStack() as stack:
        rivals: dict[str, Callable[[int], float]] = {}
        for number, config in enumerate(configs):
            summary = command(config.but(rounds=given.rounds))
            if not number and config.net.evaluator == "net":
                # After the first run: its one line is for a device that is not there.
                roofline = Roofline(config, resolve(config).for_units(10**6).max_batch, 0.5 if given.quick else 1.0)
                stack.callback(roofline.close)
                rivals[ROOFLINE] = partial(_measure_roofline, roofline, seconds)
                if given.before:
                    rivals |= rivals_before(stack, given, configs, seconds / 2)
                results.append(Result("roofline of", roofline.name()))
            name = config.search.preset
            results += [
                Result(f"{name}: rounds of the run", float(summary["new_rounds"])),
                Result(f"{name}: from the command on", summary["rounds_per_min"], "rounds/min"),
                Result(f"{name}: first round after", summary["first_round_s"] or 0.0, "s", "<= 5"),
                Result(f"{name}: simulations per decision", summary["simulations_per_decision"]),
                Result(f"{name}: rows per simulation", summary["rows_per_simulation"], "", "<= 1.5"),
                Result(f"{name}: record", summary["record_bytes_per_round"], "bytes/round", "<= 1,500"),
            ]
            mine = {
                rival: partial(rate, number)
                for rival, rate in rivals.items()
                if rival == ROOFLINE or name == "medium" or not given.quick
            }
            results += steady(config, seconds, given.repeats, mine)
    return results


def command(config: SelfPlayConfig) -> dict[str, Any]:
    """What the self-play command says of a run with these settings, in a process of its own.

    Raises ConfigError with its line where it refuses them, WorkerDied where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "run.toml"
        settings.write_text(to_toml({name: value for name, value in config.flat().items()
                                     if name not in ("out", "json", "checkpoint")}))  # fmt: skip
        flags = ["--config", str(settings), "--out", str(Path(folder) / "run"), "--json"]
        flags += ["--checkpoint", str(config.net.checkpoint)] if config.net.checkpoint else []
        done = subprocess.run([sys.executable, "-m", "shmzero.selfplay", *flags],
                              capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            line = (done.stderr.splitlines() or [f"it said nothing; exit status {done.returncode}"])[-1]
            error = ConfigError if done.returncode == 2 else WorkerDied
            raise error(f"self-play ended with status {done.returncode}: {line.removeprefix('error: ')}")
        summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return summary


def rivals_before(
    stack: ExitStack, given: argparse.Namespace, configs: Sequence[SelfPlayConfig], seconds: float
) -> dict[str, Callable[[int], float]]:
    """What the engine replaces, on this machine: one round a process, eager float32, rows by message."""
    workers = given.workers or 2 * cores()
    searches = [config.search_config() for config in configs]
    ways = {
        way: stack.enter_context(before.Before(way, searches, workers, given.net, resolve(configs[0]).devices[0]))
        for way in before.WAYS
    }
    return {way: partial(_measure_before, running, seconds) for way, running in ways.items()}


def _measure_roofline(roofline: Roofline, seconds: float, which: int) -> float:
    return roofline.measure(seconds)


def _measure_before(running: before.Before, seconds: float, which: int) -> float:
    return running.measure(which, seconds)


def decisions_per_round(config: SelfPlayConfig) -> float:
    """Searched decisions of a round: a matter of the rules far more than of who plays."""
    search = SearchConfig(determinizations=1, simulations=4)
    records = play_rounds(
        HashEvaluator(), 400, search, players=config.deals.players, cards=config.deals.cards, trump=config.deals.trump
    )
    return statistics.mean(len(_core.decode_record(record)["searched"]) for record in records)


def steady(
    config: SelfPlayConfig, seconds: float, repeats: int, rivals: Mapping[str, Callable[[], float]]
) -> list[Result]:
    """All lanes busy, in turns with the roofline and with what the engine replaces; ratios within repeats."""
    name = config.search.preset
    with Engine(config) as engine:
        engine.warm_up(seconds)
        rates: list[Rates] = []

        def play() -> float:
            rates.append(engine.measure(seconds))
            return rates[-1].rows_per_s

        measured = interleaved({"engine": play, **rivals}, repeats)
        ours = measured.pop("engine")
        per_round = engine.rows_per_decision() * decisions_per_round(config)
        per_min = Spread(tuple(60 * rate.rows_per_s / per_round for rate in rates))
        inference, workers = (
            statistics.median(getattr(rate, share) for rate in rates) for share in ("inference_share", "worker_share")
        )
        results = [
            ours.result(f"{name}: steady distinct evaluations", "per s"),
            per_min.result(f"{name}: steady", "rounds/min", ">= 6,000 with AMX" if name == "medium" else ""),
            Result(f"{name}: workers", float(engine.fleet.plan.workers)),
            Result(f"{name}: mean batch", statistics.median(rate.mean_batch for rate in rates), "rows"),
            Result(f"{name}: inference busy", statistics.median(rate.server_busy for rate in rates)),
            Result(f"{name}: worker busy", statistics.median(rate.worker_busy for rate in rates)),
            Result(f"{name}: cores' time in inference", inference),
            Result(f"{name}: cores' time in workers", workers),
            Result(f"{name}: cores' time idle or with others", max(0.0, 1 - inference - workers)),
            Result(f"{name}: worker private memory", engine.private_mb(), "MB", "<= 60"),
        ]
    if name == "medium":  # what the plan's figure is of
        results.append(Result(f"{name}: against the plan's {PLAN_ROUNDS_PER_MIN}", per_min.median / PLAN_ROUNDS_PER_MIN,
                              "x, on its 32 workers and RTX 4060"))  # fmt: skip
    for rival, theirs in measured.items():
        if rival == ROOFLINE:
            share = "roofline_share" if name == "medium" else f"{name}: roofline_share"
            results += [theirs.result(f"{name}: roofline", "per s"), ratio(share, ours, theirs, ">= 0.9")]
        else:
            against = ratio(f"{name}: engine against {rival}", ours, theirs)
            results += [
                theirs.result(f"{name}: before, {before.WAYS[rival]}", "evaluations/s"),
                dataclasses.replace(against, unit="times"),
            ]
    return results


COLUMNS = {
    "workers": "workers",
    "rounds_per_min": "steady",
    "distinct_evaluations_per_s": "steady distinct evaluations",
    "simulations_per_decision": "simulations per decision",
    "mean_batch_rows": "mean batch",
    "roofline_share": "roofline_share",
    "speed_up_plan_36.7": f"against the plan's {PLAN_ROUNDS_PER_MIN}",
    "speed_up_manager_queues": "engine against manager",
    "speed_up_queue": "engine against queue",
    "speed_up_direct": "engine against direct",
    "rounds_per_min_from_the_command_on": "from the command on",
}
"""Of the table that `selfplay --csv` writes, and the results that they show."""


def write_table(path: Path, results: Sequence[Result], given: argparse.Namespace) -> None:
    """A row for each preset; empty where a figure does not apply."""
    found = {result.name: result.value for result in results}
    found["medium: roofline_share"] = found.get("roofline_share", "")
    devices = device_text(resolve(settings_of(given)).devices)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["preset", "device", *COLUMNS])
        for preset in given.presets:
            cells = (found.get(f"{preset}: {name}", "") for name in COLUMNS.values())
            table.writerow([preset, devices, *(f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells)])


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    repeats_flag(sub)
    engine_options(sub)
    sub.add_argument("--workers", type=int)
    sub.add_argument("--seconds", type=float, help="of each engine's turn (default 12; 3 with --quick)")
    sub.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=["light", "medium", "heavy"])
    sub.add_argument("--rounds", type=int, default=200, help="of the run that is timed from the command on")
    sub.add_argument(
        "--no-before",
        action="store_false",
        dest="before",
        help="leave out what the engine replaces: queues, and a network in each process (--quick: with medium alone)",
    )
