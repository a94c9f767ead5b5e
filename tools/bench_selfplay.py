"""Benchmarks of whole engines: selfplay, scaling, ablate, tune. Run by bench.py."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from shmzero import SearchConfig, _core, play_rounds
from shmzero.config import NETS, PRESETS, SelfPlayConfig, cores, to_toml
from shmzero.evaluators import HashEvaluator
from shmzero.launch import Fleet, plan_fleet
from shmzero.selfplay import run
from tools.engine import Engine, Rates
from tools.measure import Result, Spread, interleaved, ratio
from tools.serving import Pool, layouts

PLAN_ROUNDS_PER_MIN = 36.7
"""Of the design that this one replaces: 32 workers, RTX 4060, 90 simulations a decision, 4 players, 5 cards."""


def settings_of(given: argparse.Namespace, **changes: Any) -> SelfPlayConfig:
    """The run that a benchmark's options describe."""
    options = {"preset": "medium", "device": "auto", "workers": None, "max_batch": None, "evaluator": "net",
               "net": "plan", "checkpoint": None}
    chosen = {name: getattr(given, name, default) for name, default in options.items()}
    return SelfPlayConfig(**(chosen | {"stall_s": 86_400.0} | changes))


def device_spec(config: SelfPlayConfig, max_batch: int) -> dict[str, Any]:
    """What a serving process of this run is told (see launch.py), as far as serving alone needs it."""
    return {"evaluator": config.evaluator, "precision": config.precision, "compile": config.compile,
            "max_batch": max_batch, "net": dataclasses.asdict(NETS[config.net]), "seed": config.seed,
            "checkpoint": str(config.checkpoint) if config.checkpoint else None}


def decisions_per_round(config: SelfPlayConfig) -> float:
    """Searched decisions of a round: a matter of the rules far more than of who plays."""
    search = SearchConfig(determinizations=1, simulations=4)
    records = play_rounds(HashEvaluator(), 400, search, players=config.players, cards=config.cards, trump=config.trump)
    return statistics.mean(len(_core.decode_record(record)["searched"]) for record in records)


class Roofline:
    """The best that processes x threads x batch sizes reach on this machine, same network and serving code."""

    def __init__(self, config: SelfPlayConfig, max_batch: int, seconds: float) -> None:
        """Starts a pool of each layout, finds the best of layouts and batch sizes, keeps that one."""
        cuda = any(name != "cpu" for name in config.devices())
        sizes = (max_batch // 2, max_batch) if cuda else (256, 512, 1024, 2048)
        spec = device_spec(config, sizes[-1])
        best = (0.0, None, 0)
        self.tried: dict[str, float] = {}
        self._pool: Pool | None = None
        for layout in layouts(config.devices(), cores()):
            pool = Pool(layout, spec)
            for rows in sizes:
                rate = pool.measure(rows, seconds)
                self.tried[f"{layout}, {rows} rows"] = rate
                if rate > best[0]:
                    best = (rate, pool, rows)
            if best[1] is not pool:
                pool.close()
            elif self._pool is not None:
                self._pool.close()
            self._pool = best[1]
        self.rows = best[2]

    def measure(self, seconds: float) -> float:
        """Rows/s, back to back."""
        assert self._pool is not None
        return self._pool.measure(self.rows, seconds)

    def name(self) -> str:
        assert self._pool is not None
        return f"{self._pool.layout}, {self.rows} rows"

    def close(self) -> None:
        assert self._pool is not None
        self._pool.close()


def bench_selfplay(given: argparse.Namespace) -> list[Result]:
    """A real run from the command on, then steady stretches of the engine interleaved with the roofline."""
    seconds = 4.0 if given.quick else 12.0
    results: list[Result] = []
    for preset in given.presets:
        config = settings_of(given, preset=preset)
        with tempfile.TemporaryDirectory() as folder:
            summary = run(dataclasses.replace(config, rounds=given.rounds), Path(folder) / "run")
        results += [
            Result(f"{preset}: rounds of the run", float(summary["new_rounds"])),
            Result(f"{preset}: from the command on", summary["rounds_per_min"], "rounds/min"),
            Result(f"{preset}: first round after", summary["first_round_s"] or 0.0, "s", "<= 5"),
            Result(f"{preset}: simulations per decision", summary["simulations_per_decision"]),
            Result(f"{preset}: rows per simulation", summary["rows_per_simulation"], "", "<= 1.5"),
            Result(f"{preset}: record", summary["record_bytes_per_round"], "bytes/round", "<= 1,500"),
        ]
        results += steady(config, given, preset, seconds)
    return results


def steady(config: SelfPlayConfig, given: argparse.Namespace, preset: str, seconds: float) -> list[Result]:
    """All lanes busy, in turns with the roofline."""
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(config)).warm_up(seconds)
        rates: list[Rates] = []
        rooflines: list[float] = []

        def play() -> float:
            rates.append(engine.measure(seconds))
            return rates[-1].rows_per_s

        bodies = {"engine": play}
        if config.evaluator == "net":
            roofline = Roofline(config, engine.fleet.plan.max_batch, 1.0)
            stack.callback(roofline.close)

            def serve() -> float:
                rooflines.append(roofline.measure(seconds))
                return rooflines[-1]

            bodies["roofline"] = serve
        medians = interleaved(bodies, given.repeats)
        per_round = engine.rows_per_decision() * decisions_per_round(config)
        per_min = [60 * rate.rows_per_s / per_round for rate in rates]
        results = [
            medians["engine"].result(f"{preset}: steady distinct evaluations", "per s"),
            Result(f"{preset}: steady", statistics.median(per_min), "rounds/min", ">= 6,000 with AMX",
                   min(per_min), max(per_min)),
            Result(f"{preset}: against the plan's {PLAN_ROUNDS_PER_MIN}",
                   statistics.median(per_min) / PLAN_ROUNDS_PER_MIN, "x, on its 32 workers and RTX 4060"),
            Result(f"{preset}: mean batch", statistics.median(r.mean_batch for r in rates), "rows"),
            Result(f"{preset}: inference busy", statistics.median(r.server_busy for r in rates)),
            Result(f"{preset}: worker busy", statistics.median(r.worker_busy for r in rates)),
            Result(f"{preset}: worker private memory", engine.private_mb(), "MB", "<= 60"),
        ]
        if config.evaluator == "net":
            results += [
                medians["roofline"].result(f"{preset}: roofline ({roofline.name()})", "per s"),
                ratio("roofline_share" if preset == "medium" else f"{preset}: roofline_share",
                      [(rate.rows_per_s, best) for rate, best in zip(rates, rooflines, strict=True)], ">= 0.9"),
            ]
        return results


def bench_short(given: argparse.Namespace) -> list[Result]:
    """Runs of few rounds, from the first request to the last answer, against what their rows allow."""
    config = settings_of(given, rounds=given.rounds)
    rows = given.rounds * config.search().to_core().rows_per_step(config.play_settings().most_players)
    walls: list[float] = []

    def play() -> float:
        start = time.monotonic()
        with Fleet(config, iter(range(given.rounds)), given.rounds) as fleet:
            while not fleet.counters()["rows"]:
                fleet.poll(0.002)
            first = time.monotonic()
            while not fleet.done:
                fleet.poll(0.01)
            walls.append(time.monotonic() - start)
            return fleet.counters()["rows"] / (time.monotonic() - first)

    with ExitStack() as stack:
        pools = [stack.enter_context(Pool(layout, device_spec(config, rows)))
                 for layout in layouts(config.devices(), cores())]

        def serve() -> float:
            return max(pool.measure(-(-rows // len(pool.layout.devices)), 1.0) for pool in pools)

        played: list[float] = []
        allowed: list[float] = []
        medians = interleaved({"play": lambda: played.append(play()) or played[-1],
                               "serve": lambda: allowed.append(serve()) or allowed[-1]}, given.repeats)
    return [
        medians["play"].result(f"{given.rounds} rounds, from the first request", "evaluations/s"),
        medians["serve"].result(f"serving {rows} rows, all that are asked at once", "evaluations/s"),
        ratio("share", list(zip(played, allowed, strict=True)), ">= 0.5"),
        Result("with the processes' start", 60 * given.rounds / statistics.median(walls), "rounds/min"),
    ]


def in_turns(
    given: argparse.Namespace, engines: dict[str, SelfPlayConfig]
) -> Iterator[tuple[str, Spread, list[float]]]:
    """Steady evaluations/s of several engines that take turns on the machine."""
    seconds = 3.0 if given.quick else 8.0
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(Engine(config, PERF_NAMES if name == WITHOUT_PERF else ())).warm_up(seconds)
            for name, config in engines.items()
        }
        figures: dict[str, list[float]] = {name: [] for name in started}

        def turn(name: str) -> float:
            rate = started[name].measure(seconds).rows_per_s
            figures[name].append(rate)
            return rate

        medians = interleaved({name: partial(turn, name) for name in started}, given.repeats)
        for name, spread in medians.items():
            yield name, spread, figures[name]


def bench_scaling(given: argparse.Namespace) -> list[Result]:
    """Steady distinct evaluations/s by the number of workers, which take turns on the machine."""
    engines = {str(n): settings_of(given, workers=n) for n in given.numbers}
    measured = list(in_turns(given, engines))
    best = max(spread.median for _, spread, _ in measured)
    results = [spread.result(f"{name} workers", "evaluations/s") for name, spread, _ in measured]
    return [*results, Result("slowest against the best", min(s.median for _, s, _ in measured) / best, "", ">= 0.85")]


ABLATIONS: dict[str, dict[str, Any]] = {
    "one row a batch (no batch submission)": {"max_batch": 1},
    "one round in each slot (no lanes)": {"lanes": 2},
    "eager (no torch.compile)": {"compile": False},
    "fp32 (no bf16/fp16)": {"precision": "fp32"},
    "fp32, eager": {"precision": "fp32", "compile": False},
    "four leaves in flight": {"leaves_in_flight": 4},
    "batches up to 128 rows": {"max_batch": 128},
    "no wait for further rows": {"timeout_ms": 0.0},
}
"""Each of the engine's measures switched off alone."""
WITHOUT_PERF = "without env/perf.sh"
PERF_NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_ALLOC_CONF", "LD_PRELOAD")
"""What env/perf.sh sets."""


def bench_ablate(given: argparse.Namespace) -> list[Result]:
    """What each measure brings: the engine with it switched off, against the whole engine, in turns."""
    engines = {"engine": settings_of(given)}
    engines |= {name: settings_of(given, **changes) for name, changes in ABLATIONS.items()}
    engines[WITHOUT_PERF] = engines["engine"]
    measured = list(in_turns(given, engines))
    whole = measured[0]
    results = [whole[1].result("engine", "evaluations/s")]
    for name, _, figures in measured[1:]:
        results.append(ratio(name, list(zip(figures, whole[2], strict=True))))
    return results


def bench_tune(given: argparse.Namespace) -> list[Result]:
    """Finds workers, batch and time-out by trying one after the other; writes them for --config."""
    config = settings_of(given)
    plan = plan_fleet(config, 10**6)
    chosen: dict[str, Any] = {"max_batch": plan.max_batch, "workers": plan.workers, "timeout_ms": config.timeout_ms,
                              "slots": config.slots}
    cuda = any(name != "cpu" for name in plan.devices)
    grid: dict[str, list[Any]] = {
        "max_batch": [2048, 4096, 8192, 16384] if cuda else [256, 512, 1024, 2048],
        "workers": sorted({len(plan.devices), plan.workers, 2 * plan.workers}),
        "slots": [2, 3],
        "timeout_ms": [0.5, 2.0, 8.0],
    }
    results: list[Result] = []
    for name, values in grid.items():
        engines = {str(value): settings_of(given, **(chosen | {name: value})) for value in values}
        medians = {}
        for value, (label, spread, _) in zip(values, in_turns(given, engines), strict=True):
            results.append(spread.result(f"{name} {label}", "evaluations/s"))
            medians[value] = spread.median
        chosen[name] = max(medians, key=medians.__getitem__)
    for name, value in chosen.items():
        results.append(Result(f"chosen: {name}", str(value)))
    given.output.write_text(to_toml({"preset": config.preset, "device": config.device, **chosen}))
    results.append(Result("written to", str(given.output)))
    return results


def add_options(name: str, sub: argparse.ArgumentParser) -> None:
    """The options of a benchmark of whole engines."""
    sub.add_argument("--device", default="auto")
    sub.add_argument("--net", choices=sorted(NETS), default="plan")
    sub.add_argument("--checkpoint", type=Path, help="weights to serve instead of fresh ones")
    sub.add_argument("--evaluator", choices=["net", "hash", "uniform"], default="net")
    sub.add_argument("--max-batch", type=int)
    if name == "selfplay":
        sub.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=["medium"])
        sub.add_argument("--rounds", "--games", type=int, default=200, dest="rounds",
                         help="of the run that is timed from the command on (the plan called rounds games)")
    else:
        sub.add_argument("--preset", choices=sorted(PRESETS), default="medium")
    if name == "short":
        sub.add_argument("--rounds", "--games", type=int, default=50, dest="rounds", help="of each run")
    if name == "scaling":
        sub.add_argument("--workers", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64], dest="numbers", metavar="N")
    else:
        sub.add_argument("--workers", type=int)
    if name == "tune":
        sub.add_argument("--output", type=Path, default=Path("tuned.toml"), help="settings for selfplay --config")


BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Result]]] = {
    "selfplay": bench_selfplay, "short": bench_short, "scaling": bench_scaling, "ablate": bench_ablate,
    "tune": bench_tune,
}
