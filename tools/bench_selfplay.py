"""Benchmarks of whole engines: selfplay, short, scaling, ablate, tune. Run by bench.py."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from shmzero import SearchConfig, _core, play_rounds
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.fleet import Fleet
from shmzero.engine.plan import plan_fleet
from shmzero.errors import ConfigError, WorkerDied
from shmzero.machine import cores
from shmzero.mcts.config import PRESETS
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.nets.config import NETS
from shmzero.settings import to_toml
from tools import bench_before
from tools.bench_perf import hidden_allocators, thread_costs
from tools.engine import Engine, Rates
from tools.measure import PLAN_ROUNDS_PER_MIN, Result, Spread, interleaved, ratio
from tools.serving import Pool, layouts, serving_costs

ROOT = Path(__file__).resolve().parent.parent


def settings_of(given: argparse.Namespace, **changes: Any) -> SelfPlayConfig:
    """The run that a benchmark's options describe."""
    options = {
        "preset": "medium",
        "device": "auto",
        "workers": None,
        "max_batch": None,
        "evaluator": "net",
        "net": "plan",
        "checkpoint": None,
    }
    chosen = {name: getattr(given, name, default) for name, default in options.items()}
    return SelfPlayConfig(**(chosen | {"stall_s": 86_400.0} | changes))


def device_spec(config: SelfPlayConfig, max_batch: int) -> dict[str, Any]:
    """What a serving process of this run is told (see engine/fleet.py), as far as serving alone needs it."""
    return {
        "evaluator": config.evaluator,
        "precision": config.precision,
        "compile": config.compile,
        "max_batch": max_batch,
        "net": dataclasses.asdict(NETS[config.net]),
        "seed": config.seed,
        "checkpoint": str(config.checkpoint) if config.checkpoint else None,
    }


def device_text(devices: Sequence[str]) -> str:
    """Devices as --device takes them."""
    return f"cpu*{len(devices)}" if set(devices) == {"cpu"} else ",".join(devices)


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
    """A real run from the command on, then the engine, the roofline and what it replaces, in turns."""
    seconds = given.seconds or (3.0 if given.quick else 12.0)
    configs = [settings_of(given, preset=preset) for preset in given.presets]
    results: list[Result] = []
    with ExitStack() as stack:
        rivals: dict[str, Callable[[int], float]] = {}
        for number, config in enumerate(configs):
            summary = command(dataclasses.replace(config, rounds=given.rounds))
            if not number and config.evaluator == "net":
                # After the first run: its one line is for a device that is not there.
                roofline = Roofline(config, plan_fleet(config, 10**6).max_batch, 0.5 if given.quick else 1.0)
                stack.callback(roofline.close)
                rivals[ROOFLINE] = partial(_measure_roofline, roofline, seconds)
                if given.before:
                    rivals |= before(stack, given, configs, seconds / 2)
                results.append(Result("roofline of", roofline.name()))
            name = config.preset
            results += [
                Result(f"{name}: rounds of the run", float(summary["new_rounds"])),
                Result(f"{name}: from the command on", summary["rounds_per_min"], "rounds/min"),
                Result(f"{name}: first round after", summary["first_round_s"] or 0.0, "s", "<= 5"),
                Result(f"{name}: simulations per decision", summary["simulations_per_decision"]),
                Result(f"{name}: rows per simulation", summary["rows_per_simulation"], "", "<= 1.5"),
                Result(f"{name}: record", summary["record_bytes_per_round"], "bytes/round", "<= 1,500"),
            ]
            mine = {
                rival: partial(measure, number)
                for rival, measure in rivals.items()
                if rival == ROOFLINE or name == "medium" or not given.quick
            }
            results += steady(config, seconds, given.repeats, mine)
    return results


ROOFLINE = "roofline"


def command(config: SelfPlayConfig) -> dict[str, Any]:
    """What the self-play command says of a run with these settings, in a process of its own.

    Raises ConfigError with its line where it refuses them, WorkerDied where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "run.toml"
        settings.write_text(to_toml({name: value for name, value in dataclasses.asdict(config).items()
                                     if name not in ("out", "json", "checkpoint")}))  # fmt: skip
        flags = ["--config", str(settings), "--out", str(Path(folder) / "run"), "--json"]
        flags += ["--checkpoint", str(config.checkpoint)] if config.checkpoint else []
        done = subprocess.run([sys.executable, "-m", "shmzero.selfplay", *flags], cwd=ROOT,
                              capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            line = (done.stderr.splitlines() or [f"it said nothing; exit status {done.returncode}"])[-1]
            error = ConfigError if done.returncode == 2 else WorkerDied
            raise error(f"self-play ended with status {done.returncode}: {line.removeprefix('error: ')}")
        summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return summary


def before(
    stack: ExitStack, given: argparse.Namespace, configs: Sequence[SelfPlayConfig], seconds: float
) -> dict[str, Callable[[int], float]]:
    """What the engine replaces, on this machine: one round a process, eager float32, rows by message."""
    workers = given.workers or 2 * cores()
    searches = [config.search() for config in configs]
    ways = {
        way: stack.enter_context(bench_before.Before(way, searches, workers, given.net, configs[0].devices()[0]))
        for way in bench_before.WAYS
    }
    return {way: partial(_measure_before, running, seconds) for way, running in ways.items()}


def _measure_roofline(roofline: Roofline, seconds: float, which: int) -> float:
    return roofline.measure(seconds)


def _measure_before(running: bench_before.Before, seconds: float, which: int) -> float:
    return running.measure(which, seconds)


def steady(
    config: SelfPlayConfig, seconds: float, repeats: int, rivals: Mapping[str, Callable[[], float]]
) -> list[Result]:
    """All lanes busy, in turns with the roofline and with what the engine replaces; ratios within repeats."""
    name = config.preset
    with Engine(config) as engine:
        engine.warm_up(seconds)
        rates: list[Rates] = []
        figures: dict[str, list[float]] = {rival: [] for rival in rivals}

        def play() -> float:
            rates.append(engine.measure(seconds))
            return rates[-1].rows_per_s

        def turn(rival: str) -> float:
            figures[rival].append(rivals[rival]())
            return figures[rival][-1]

        medians = interleaved({"engine": play} | {rival: partial(turn, rival) for rival in rivals}, repeats)
        per_round = engine.rows_per_decision() * decisions_per_round(config)
        per_min = Spread.of([60 * rate.rows_per_s / per_round for rate in rates])
        inference, workers = (
            statistics.median(getattr(rate, share) for rate in rates) for share in ("inference_share", "worker_share")
        )
        results = [
            medians["engine"].result(f"{name}: steady distinct evaluations", "per s"),
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
    pairs = {rival: list(zip([rate.rows_per_s for rate in rates], found, strict=True))
             for rival, found in figures.items()}  # fmt: skip
    for rival, found in pairs.items():
        if rival == ROOFLINE:
            share = "roofline_share" if name == "medium" else f"{name}: roofline_share"
            results += [medians[rival].result(f"{name}: roofline", "per s"), ratio(share, found, ">= 0.9")]
        else:
            against = ratio(f"{name}: engine against {rival}", found)
            results += [
                medians[rival].result(f"{name}: before, {bench_before.WAYS[rival]}", "evaluations/s"),
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
    devices = device_text(settings_of(given).devices())
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["preset", "device", *COLUMNS])
        for preset in given.presets:
            cells = (found.get(f"{preset}: {name}", "") for name in COLUMNS.values())
            table.writerow([preset, devices, *(f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells)])


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
        pools = [
            stack.enter_context(Pool(layout, device_spec(config, rows)))
            for layout in layouts(config.devices(), cores())
        ]

        def serve() -> float:
            return max(pool.measure(-(-rows // len(pool.layout.devices)), 1.0) for pool in pools)

        played: list[float] = []
        allowed: list[float] = []
        medians = interleaved(
            {
                "play": lambda: played.append(play()) or played[-1],
                "serve": lambda: allowed.append(serve()) or allowed[-1],
            },
            given.repeats,
        )
    return [
        medians["play"].result(f"{given.rounds} rounds, from the first request", "evaluations/s"),
        medians["serve"].result(f"serving {rows} rows, all that are asked at once", "evaluations/s"),
        ratio("share", list(zip(played, allowed, strict=True)), ">= 0.5"),
        Result("with the processes' start", 60 * given.rounds / statistics.median(walls), "rounds/min"),
    ]


def in_turns(
    given: argparse.Namespace,
    engines: dict[str, SelfPlayConfig],
    without: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[str, Spread, list[float]]]:
    """Steady evaluations/s of several engines that take turns; `without` variables of the environment, by engine."""
    seconds = given.seconds or (3.0 if given.quick else 8.0)
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(Engine(config, (without or {}).get(name, ()))).warm_up(seconds)
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
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "four leaves in flight": {"leaves_in_flight": 4},
    "batches up to 128 rows": {"max_batch": 128},
    "no wait for further rows": {"timeout_ms": 0.0},
    "two slots a worker": {"slots": 2},
    "one inference process, all cores its threads": {"device": "cpu*1"},
}
"""Each of the engine's measures switched off alone. One of the precisions is what the engine takes by itself."""


def bench_ablate(given: argparse.Namespace) -> list[Result]:
    """What each measure brings: the engine with it switched off, against the whole engine, in turns."""
    whole = settings_of(given)
    plan = plan_fleet(whole, 10**6)
    changes = dict(ABLATIONS)
    if plan.spin_us > 0:
        changes["no busy waiting"] = {"spin_us": 0.0}
    else:
        changes["50 us of busy waiting"] = {"spin_us": 50.0}
    if "cpu" not in whole.devices():
        del changes["one inference process, all cores its threads"]
    without, left = hidden_allocators("cpu" not in whole.devices())
    engines = {"engine": whole} | {name: settings_of(given, **change) for name, change in changes.items()}
    measured = list(in_turns(given, engines | dict.fromkeys(without, whole), without))
    rates = measured[0][2]
    results = [measured[0][1].result("engine", "evaluations/s")]
    results += [ratio(name, list(zip(figures, rates, strict=True))) for name, _, figures in measured[1:]]
    if whole.evaluator == "net":
        with Pool(layouts(whole.devices(), cores())[-1], device_spec(whole, plan.max_batch)) as pool:
            results += serving_costs(pool, given.repeats, 0.5 if given.quick else 2.0)
        results += thread_costs(given.repeats, 0.5 if given.quick else 2.0)
    return results + left


def bench_tune(given: argparse.Namespace) -> list[Result]:
    """Finds the settings of a machine by trying one after the other; writes them for selfplay --config."""
    config = settings_of(given)
    plan = plan_fleet(config, 10**6)
    cuda = any(name != "cpu" for name in plan.devices)
    results: list[Result] = []
    chosen: dict[str, Any] = {}
    devices = [given.device]
    if given.device == "auto" and not cuda and config.evaluator == "net":
        devices = [f"cpu*{len(layout.devices)}" for layout in layouts(["cpu"], cores())]
        chosen["device"] = tried_in_turns(given, {"max_batch": plan.max_batch}, "device", devices, results)
        plan = plan_fleet(settings_of(given, **chosen), 10**6)
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
        "slots": config.slots,
        "timeout_ms": config.timeout_ms,
        "lanes": None,
    }
    for name, values in choices.items():
        if name == "lanes":  # about what so many rows, workers and slots come to
            lanes = plan_fleet(settings_of(given, **chosen), 10**6).lanes
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
    medians = {}
    for value, (label, spread, _) in zip(values, in_turns(given, engines), strict=True):
        results.append(spread.result(f"{name} {label}", "evaluations/s"))
        medians[value] = spread.median
    return max(medians, key=medians.__getitem__)


def tuned_settings(given: argparse.Namespace, chosen: dict[str, Any]) -> dict[str, Any]:
    """All that `selfplay --config` needs to run what was measured."""
    config = settings_of(given, **chosen)
    plan = plan_fleet(config, 10**6)
    settings: dict[str, Any] = {
        "preset": config.preset,
        "evaluator": config.evaluator,
        "net": config.net,
        "precision": config.precision,
        "device": device_text(plan.devices),
    }
    if set(plan.devices) == {"cpu"}:
        settings["inference_threads"] = plan.threads
    if config.checkpoint:
        settings["checkpoint"] = str(config.checkpoint.resolve())
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
    measured = list(in_turns(given, engines))
    best = max(measured[1:], key=lambda entry: entry[1].median)
    return [
        Result("combinations tried", float(len(tried))),
        best[1].result(f"best of them: {best[0]}", "evaluations/s"),
        ratio("chosen against the best of the grid", list(zip(measured[0][2], best[2], strict=True)), ">= 0.95"),
    ]


def add_options(name: str, sub: argparse.ArgumentParser) -> None:
    """The options of a benchmark of whole engines."""
    sub.add_argument("--device", default="auto")
    sub.add_argument("--net", choices=sorted(NETS), default="plan")
    sub.add_argument("--checkpoint", type=Path, help="weights to serve instead of fresh ones")
    sub.add_argument("--evaluator", choices=["net", "hash", "uniform"], default="net")
    sub.add_argument("--max-batch", type=int)
    if name in ("scaling", "ablate", "tune"):
        sub.add_argument("--seconds", type=float, help="of each engine's turn (default 8; 3 with --quick)")
    if name == "selfplay":
        sub.add_argument("--seconds", type=float, help="of each engine's turn (default 12; 3 with --quick)")
        sub.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=["light", "medium", "heavy"])
        sub.add_argument(
            "--rounds",
            "--games",
            type=int,
            default=200,
            dest="rounds",
            help="of the run that is timed from the command on (the plan called rounds games)",
        )
        sub.add_argument(
            "--no-before",
            action="store_false",
            dest="before",
            help="leave out what the engine replaces: queues, and a network in each process "
            "(--quick: with medium alone)",
        )
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
        sub.add_argument("--grid", action="store_true", help="also against every combination; most of an hour")


BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Result]]] = {
    "selfplay": bench_selfplay,
    "short": bench_short,
    "scaling": bench_scaling,
    "ablate": bench_ablate,
    "tune": bench_tune,
}
