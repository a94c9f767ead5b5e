"""Benchmark `search`: the search of decisions alone, in one thread."""

from __future__ import annotations

import argparse
from typing import Any

from shmzero import SearchConfig, _core
from shmzero.mcts.config import PRESETS
from shmzero.mcts.play import play_settings
from tools.benchmarks.measure import Result, interleaved
from tools.benchmarks.options import quick_flag, repeats_flag


def preset(name: str, **more: Any) -> SearchConfig:
    worlds, simulations = PRESETS[name]
    return SearchConfig(determinizations=worlds, simulations=simulations, noise_fraction=0.25, **more)


def measure(given: argparse.Namespace) -> list[Result]:
    """The search alone: encoding included, a uniform evaluator whose own time is taken off."""
    settings = play_settings(preset(given.preset))
    rounds = 300 if given.quick else 2000
    last: dict[str, Any] = {}

    def body(lanes: int) -> float:
        last.update(_core.bench_search(settings, lanes, rounds))
        return float(last["total_ns"] - last["evaluator_ns"]) / float(last["simulations"])

    few = 8  # whose trees stay in the cache of a core
    spreads = interleaved({"few": lambda: body(few), "many": lambda: body(given.lanes)}, given.repeats)
    spread = spreads["many"]
    return [
        spread.result(f"search {given.preset}, {given.lanes} lanes", "ns/simulation", "<= 250"),
        spreads["few"].result(f"search {given.preset}, {few} lanes", "ns/simulation"),
        Result("per distinct evaluation", spread.median * last["simulations"] / last["rows"], "ns", "<= 250"),
        Result("rows per simulation", last["rows"] / last["simulations"], "", "<= 1.5"),
        Result("terminal share", last["terminals"] / last["simulations"], ""),
        Result("simulations per decision", last["simulations"] / last["decisions"], ""),
    ]


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    repeats_flag(sub)
    sub.add_argument("--preset", choices=sorted(PRESETS), default="medium")
    sub.add_argument("--lanes", type=int, default=256)
