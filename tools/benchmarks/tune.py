"""Benchmark `tune`: finds the settings of a machine, for `selfplay --config`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shmzero.engine.plan import resolve
from shmzero.machine import cores
from shmzero.mcts.config import PRESETS
from shmzero.settings import to_toml
from tools.benchmarks.engines import Engine, device_text, engine_options, in_turns, settings_of
from tools.benchmarks.measure import Result, ratio
from tools.benchmarks.options import quick_flag, repeats_flag
from tools.benchmarks.roofline import layouts


def measure(given: argparse.Namespace) -> list[Result]:
    """Finds the settings of a machine by trying one after the other; writes them for selfplay --config."""
    config = settings_of(given)
    plan = resolve(config).for_units(10**6)
    cuda = any(name != "cpu" for name in plan.devices)
    results: list[Result] = []
    chosen: dict[str, Any] = {}
    devices = [given.device]
    if given.device == "auto" and not cuda and config.net.evaluator == "net":
        devices = [f"cpu*{len(layout.devices)}" for layout in layouts(["cpu"], cores())]
        chosen["device"] = tried_in_turns(given, {"max_batch": plan.max_batch}, "device", devices, results)
        plan = resolve(settings_of(given, **chosen)).for_units(10**6)
    choices: dict[str, list[Any]] = {
        "max_batch": [2048, 4096, 8192, 16384] if cuda else [512, 1024, 2048],
        "workers": sorted({max(1, plan.workers // 2), plan.workers, 2 * plan.workers}),
        "slots": [2, 4, 8],
        "timeout_ms": [0.5, 2.0],
        "lanes": [],
    }
    chosen |= {
        "max_batch": plan.max_batch,
        "workers": plan.workers,
        "slots": config.processes.slots,
        "timeout_ms": config.inference.timeout_ms,
        "lanes": None,
    }
    for name, values in choices.items():
        if name == "lanes":  # about what so many rows, workers and slots come to
            lanes = resolve(settings_of(given, **chosen)).for_units(10**6).lanes
            values += [max(chosen["slots"], lanes // 2), lanes, 2 * lanes]
        chosen[name] = tried_in_turns(given, chosen, name, values, results)
    results += [Result(f"chosen: {name}", str(value)) for name, value in chosen.items()]
    if given.grid:
        results += against_grid(given, chosen, {"device": devices} | choices)
    given.output.write_text(to_toml(tuned_settings(given, chosen)))
    return [*results, Result("written to", str(given.output))]


def tried_in_turns(
    given: argparse.Namespace, chosen: dict[str, Any], name: str, values: Sequence[Any], results: list[Result]
) -> Any:
    """The value of one setting with which the engine is fastest; what each gave goes into `results`."""
    engines = {str(value): settings_of(given, **(chosen | {name: value})) for value in values}
    spreads = in_turns(given, engines)
    results += [spread.result(f"{name} {label}", "evaluations/s") for label, spread in spreads.items()]
    return max(values, key=lambda value: spreads[str(value)].median)


def tuned_settings(given: argparse.Namespace, chosen: dict[str, Any]) -> dict[str, Any]:
    """All that `selfplay --config` needs to run what was measured."""
    config = settings_of(given, **chosen)
    plan = resolve(config).for_units(10**6)
    settings: dict[str, Any] = {
        "preset": config.search.preset,
        "evaluator": config.net.evaluator,
        "net": config.net.net,
        "precision": config.inference.precision,
        "device": device_text(plan.devices),
    }
    if set(plan.devices) == {"cpu"}:
        settings["inference_threads"] = plan.threads
    if config.net.checkpoint:
        settings["checkpoint"] = str(config.net.checkpoint.resolve())
    return chosen | settings


def against_grid(given: argparse.Namespace, chosen: dict[str, Any], choices: dict[str, list[Any]]) -> list[Result]:
    """The chosen settings against the best of all combinations (lanes as they follow from them).

    Each is tried once, the best three again, in turns with the chosen ones.
    """
    names = ("device", "max_batch", "workers", "slots", "timeout_ms")
    tried: list[tuple[float, dict[str, Any]]] = []
    for values in itertools.product(*(choices[name] for name in names)):
        change = dict(zip(names, values, strict=True))
        with Engine(settings_of(given, **change)) as engine:
            tried.append((engine.warm_up(1.0).measure(3.0).rows_per_s, change))
    tried.sort(key=lambda entry: -entry[0])
    engines = {"chosen": settings_of(given, **chosen)}
    for _, change in tried[:3]:
        engines[", ".join(f"{name} {value}" for name, value in change.items())] = settings_of(given, **change)
    measured = in_turns(given, engines)
    ours = measured.pop("chosen")
    best = max(measured, key=lambda name: measured[name].median)
    return [
        Result("combinations tried", float(len(tried))),
        measured[best].result(f"best of them: {best}", "evaluations/s"),
        ratio("chosen against the best of the grid", ours, measured[best], ">= 0.95"),
    ]


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    repeats_flag(sub)
    engine_options(sub)
    sub.add_argument("--preset", choices=sorted(PRESETS), default="medium")
    sub.add_argument("--seconds", type=float, help="of each engine's turn (default 8; 3 with --quick)")
    sub.add_argument("--workers", type=int)
    sub.add_argument("--output", type=Path, default=Path("tuned.toml"), help="settings for selfplay --config")
    sub.add_argument("--grid", action="store_true", help="also against every combination; most of an hour")
