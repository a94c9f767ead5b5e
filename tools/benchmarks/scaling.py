"""Benchmark `scaling`: the engine with different numbers of workers."""

from __future__ import annotations

import argparse

from shmzero.mcts.config import PRESETS
from tools.benchmarks.engines import engine_options, in_turns, settings_of
from tools.benchmarks.measure import Result
from tools.benchmarks.options import quick_flag, repeats_flag


def measure(given: argparse.Namespace) -> list[Result]:
    """Steady distinct evaluations/s by the number of workers, which take turns on the machine."""
    engines = {str(n): settings_of(given, workers=n) for n in given.numbers}
    measured = in_turns(given, engines)
    medians = [spread.median for spread in measured.values()]
    results = [spread.result(f"{name} workers", "evaluations/s") for name, spread in measured.items()]
    return [*results, Result("slowest against the best", min(medians) / max(medians), "", ">= 0.85")]


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    repeats_flag(sub)
    engine_options(sub)
    sub.add_argument("--preset", choices=sorted(PRESETS), default="medium")
    sub.add_argument("--seconds", type=float, help="of each engine's turn (default 8; 3 with --quick)")
    sub.add_argument("--workers", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64], dest="numbers", metavar="N")
