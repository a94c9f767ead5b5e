"""Benchmark `short`: what is lost at the start and at the end of a run of few rounds."""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack

from shmzero.engine.fleet import Fleet
from shmzero.engine.plan import resolve
from shmzero.machine import cores
from shmzero.mcts.config import PRESETS
from tools.benchmarks.engines import device_spec, engine_options, settings_of
from tools.benchmarks.measure import Result, interleaved, ratio
from tools.benchmarks.options import repeats_flag
from tools.benchmarks.roofline import Pool, layouts


def measure(given: argparse.Namespace) -> list[Result]:
    """Runs of few rounds, from the first request to the last answer, against what their rows allow."""
    config = settings_of(given, rounds=given.rounds)
    rows = given.rounds * config.search_config().to_core().rows_per_step(config.play_settings().most_players)
    walls: list[float] = []

    def play() -> float:
        start = time.monotonic()
        with Fleet(resolve(config), iter(range(given.rounds)), given.rounds) as fleet:
            while not fleet.counters()["rows"]:
                fleet.poll(0.002)
            first = time.monotonic()
            while not fleet.done:
                fleet.poll(0.01)
            walls.append(time.monotonic() - start)
            return fleet.counters()["rows"] / (time.monotonic() - first)

    with ExitStack() as stack:
        pools = [
            stack.enter_context(Pool(layout, device_spec(config, rows)))
            for layout in layouts(resolve(config).devices, cores())
        ]

        def serve() -> float:
            return max(pool.measure(-(-rows // len(pool.layout.devices)), 1.0) for pool in pools)

        measured = interleaved({"play": play, "serve": serve}, given.repeats)
    return [
        measured["play"].result(f"{given.rounds} rounds, from the first request", "evaluations/s"),
        measured["serve"].result(f"serving {rows} rows, all that are asked at once", "evaluations/s"),
        ratio("share", measured["play"], measured["serve"], ">= 0.5"),
        Result("with the processes' start", 60 * given.rounds / statistics.median(walls), "rounds/min"),
    ]


def add_options(sub: argparse.ArgumentParser) -> None:
    repeats_flag(sub)
    engine_options(sub)
    sub.add_argument("--preset", choices=sorted(PRESETS), default="medium")
    sub.add_argument("--workers", type=int)
    sub.add_argument("--rounds", type=int, default=50, help="of each run")
