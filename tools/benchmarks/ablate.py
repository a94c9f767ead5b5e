"""Benchmark `ablate`: what each measure of the engine brings. Read next: perf.py."""

from __future__ import annotations

import argparse
from typing import Any

from shmzero.engine.plan import resolve
from shmzero.machine import cores
from shmzero.mcts.config import PRESETS
from tools.benchmarks.engines import device_spec, engine_options, in_turns, settings_of
from tools.benchmarks.measure import Result, ratio
from tools.benchmarks.options import quick_flag, repeats_flag
from tools.benchmarks.perf import hidden_allocators, thread_costs
from tools.benchmarks.roofline import Pool, layouts, serving_costs

ABLATIONS: dict[str, dict[str, Any]] = {
    "one row a batch (no batch submission)": {"max_batch": 1},
    "one round in each slot (no lanes)": {"lanes": 2},
    "eager (no torch.compile)": {"compile": False},
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "four leaves in flight": {"leaves_in_flight": 4},
    "batches up to 128 rows": {"max_batch": 128},
    "no wait for further rows": {"timeout_ms": 0.0},
    "two slots a worker": {"slots": 2},
    "one inference process, all cores its threads": {"device": "cpu*1"},
}
"""Each of the engine's measures switched off alone. One of the precisions is what the engine takes by itself."""


def measure(given: argparse.Namespace) -> list[Result]:
    """What each measure brings: the engine with it switched off, against the whole engine, in turns."""
    whole = settings_of(given)
    plan = resolve(whole).for_units(10**6)
    changes = dict(ABLATIONS)
    if plan.spin_us > 0:
        changes["no busy waiting"] = {"spin_us": 0.0}
    else:
        changes["50 us of busy waiting"] = {"spin_us": 50.0}
    if "cpu" not in plan.devices:
        del changes["one inference process, all cores its threads"]
    without, left = hidden_allocators("cpu" not in plan.devices)
    engines = {"engine": whole} | {name: settings_of(given, **change) for name, change in changes.items()}
    measured = in_turns(given, engines | dict.fromkeys(without, whole), without)
    engine = measured.pop("engine")
    results = [engine.result("engine", "evaluations/s")]
    results += [ratio(name, spread, engine) for name, spread in measured.items()]
    if whole.net.evaluator == "net":
        with Pool(layouts(plan.devices, cores())[-1], device_spec(whole, plan.max_batch)) as pool:
            results += serving_costs(pool, given.repeats, 0.5 if given.quick else 2.0)
        results += thread_costs(given.repeats, 0.5 if given.quick else 2.0)
    return results + left


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    repeats_flag(sub)
    engine_options(sub)
    sub.add_argument("--preset", choices=sorted(PRESETS), default="medium")
    sub.add_argument("--seconds", type=float, help="of each engine's turn (default 8; 3 with --quick)")
    sub.add_argument("--workers", type=int)
