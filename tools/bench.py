#!/usr/bin/env python3
"""Measures the engine: python tools/bench.py NAME; --help lists the names.

Each result is a name, a value, a unit and, where there is one, a goal. Repeats are interleaved and the
median is shown. --json FILE keeps the results with machine, versions, commit and settings.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from shmzero import SearchConfig, _core, play_rounds
from shmzero.config import NETS, PRESETS, SelfPlayConfig, cores, play_settings
from shmzero.errors import ShmzeroError
from shmzero.evaluators import NetEvaluator
from shmzero.records import Records
from shmzero.selfplay import run
from tools import bench_clients, bench_selfplay, bench_training, report
from tools.measure import Result, interleaved, machine
from tools.serving import ready_device


def preset(name: str, **more: Any) -> SearchConfig:
    worlds, simulations = PRESETS[name]
    return SearchConfig(determinizations=worlds, simulations=simulations, noise_fraction=0.25, **more)


def bench_search(given: argparse.Namespace) -> list[Result]:
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


def bench_transport(given: argparse.Namespace) -> list[Result]:
    """Slots between two spinning threads: one row there and back, and rows a second in slots of 256."""
    trips, rows = (20_000, 1_000_000) if given.quick else (100_000, 5_000_000)
    medians = interleaved(
        {
            "trip": lambda: _core.bench_round_trip(trips),
            "rows": lambda: _core.bench_rows(256, 4, rows),
        },
        given.repeats,
    )
    return [
        medians["trip"].result("slot round trip, one row", "ns", "<= 2,000"),
        medians["rows"].result("rows through slots of 256", "rows/s", ">= 5,000,000"),
    ]


def bench_inference(given: argparse.Namespace) -> list[Result]:
    """Rows a second of the serving path in one thread, swappable weights, eager and compiled."""
    import torch

    from shmzero.net import flops_per_row
    from shmzero.net_device import DTYPES, cpu_has_bf16

    torch.set_num_threads(1)
    precisions = ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]
    size = 1024
    bodies: dict[str, Callable[[], float]] = {}
    for precision in precisions:
        square = torch.rand(size, size).to(DTYPES[precision])

        def product(square: Any = square) -> float:
            start = time.perf_counter()
            for _ in range(4):
                torch.mm(square, square)
            return 4 * 2 * size**3 / (time.perf_counter() - start)

        bodies[f"{precision} product"] = product
    for precision in precisions:
        for compiled in (False, True):
            config = bench_selfplay.settings_of(given, precision=precision, compile=compiled)
            spec = bench_selfplay.device_spec(config, given.max_batch) | {"device": "cpu", "threads": 1}
            device = ready_device(spec)
            for count in (size for size in (1, 16, 64, 256, 512, 1024, 2048) if size <= given.max_batch):

                def body(device: Any = device, count: int = count) -> float:
                    start = time.perf_counter()
                    for _ in range(3):
                        device.launch(0, count)
                    return 3 * count / (time.perf_counter() - start)

                body()
                kind = "compiled" if compiled else "eager"
                bodies[f"{kind} {precision} {count} rows"] = body
    medians = interleaved(bodies, given.repeats)
    products = {precision: medians.pop(f"{precision} product").median for precision in precisions}
    results = [spread.result(f"{name}, one thread", "positions/s") for name, spread in medians.items()]
    flops = flops_per_row(NETS[given.net])
    for precision, rate in products.items():
        best = max(spread.median for name, spread in medians.items() if precision in name)
        results.append(Result(f"{precision} 1024^3 matrix product, one thread", rate / 1e9, "GFLOP/s"))
        results.append(Result(f"{precision}: best, share of that product's rate", best * flops / rate, ""))
    return results


def bench_signature(given: argparse.Namespace) -> list[Result]:
    """One hash of the records of fixed runs with the hash evaluator: the same on every machine."""
    total = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        for leaves in (1, 4):
            config = SelfPlayConfig(
                rounds=100, preset="light", evaluator="hash", leaves_in_flight=leaves,
                workers=given.workers, max_batch=given.max_batch,
            )
            path = Path(folder) / str(leaves)
            run(config, path)
            for record in Records(path):
                total.update(record)
    return [Result("signature", total.hexdigest(), "sha256")]


def bench_numerics(given: argparse.Namespace) -> list[Result]:
    """Action probabilities of each serving mode against fp32 eager, on a network fitted to be confident."""
    import torch

    from shmzero.net import load_checkpoint
    from shmzero.net_device import CpuNetDevice, cpu_has_bf16
    from tools.fit import fitted_net, wide_masks

    torch.set_num_threads(cores())
    net = load_checkpoint(given.checkpoint) if given.checkpoint else fitted_net(
        NETS[given.net], 100 if given.quick else 300, rounds=400, lr=5e-4, certain=True
    )
    # Rounds that the network itself plays: what it is asked when it serves.
    rounds = play_rounds(NetEvaluator(net), 20, SearchConfig(determinizations=2, simulations=20), seed=77)
    rows = _core.replay(rounds)
    features, masks = rows["features"], rows["masks"]
    wide = wide_masks(masks)
    reference, _ = NetEvaluator(net).evaluate_many(features.astype(np.float32), wide)
    results = [
        Result("rounds", float(len(rounds)), "", ">= 10"),
        Result("positions", float(len(masks)), ""),
        Result("mean top probability", float(reference.max(axis=1).mean()), "", ">= 0.6"),
    ]
    served = ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]
    for precision in served:
        for compiled in (False, True):
            device = CpuNetDevice(net, precision, compiled, 512)
            if compiled and not device.compiled:
                continue
            parts = []
            for at in range(0, len(masks), 512):
                count = min(512, len(masks) - at)
                staging = device.staging(0)
                staging.features[:count] = features[at : at + count]
                staging.masks[:count] = masks[at : at + count]
                device.launch(0, count)
                parts.append(staging.policies[:count].copy())
            difference = np.abs(np.concatenate(parts) - reference)[wide]
            kind = f"{precision} {'compiled' if compiled else 'eager'}"
            results += [
                Result(f"{kind}: largest difference", float(difference.max()), "", "< 0.01"),
                Result(f"{kind}: p99.9", float(np.quantile(difference, 0.999)), ""),
                Result(f"{kind}: mean", float(difference.mean()), ""),
            ]
    return results


RESULTS = Path(__file__).parent / "results"
BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Result]]] = {
    "search": bench_search,
    "inference": bench_inference,
    "transport": bench_transport,
    "signature": bench_signature,
    "numerics": bench_numerics,
    "clients": bench_clients.bench_clients,
    **bench_selfplay.BENCHMARKS,
    "training": bench_training.bench_training,
}


def parser() -> argparse.ArgumentParser:
    """One subcommand a benchmark, and two that make use of them."""
    top = argparse.ArgumentParser(
        prog="tools/bench.py", description="Measures the engine.",
        epilog="example: env/run python tools/bench.py selfplay --presets medium --json tools/results/selfplay.json",
    )
    commands = top.add_subparsers(dest="name", required=True, metavar="|".join([*BENCHMARKS, "report", "all"]))
    for name, body in BENCHMARKS.items():
        sub = commands.add_parser(name, help=(body.__doc__ or "").splitlines()[0])
        sub.add_argument("--json", type=Path, metavar="FILE", help="keep the results with what they were measured on")
        csv_flags = ["--csv", "--output"] if name == "selfplay" else ["--csv"]
        sub.add_argument(*csv_flags, dest="csv", type=Path, metavar="FILE", help="the results as a table")
        sub.add_argument("--quick", action="store_true", help="shorter, noisier")
        sub.add_argument("--repeats", type=int, default=3, help="interleaved repeats (default 3)")
        if name in bench_selfplay.BENCHMARKS:
            bench_selfplay.add_options(name, sub)
        if name == "training":
            bench_training.add_options(sub)
        if name == "search":
            sub.add_argument("--preset", choices=sorted(PRESETS), default="medium")
            sub.add_argument("--lanes", type=int, default=256)
        if name in ("inference", "numerics"):
            sub.add_argument("--net", choices=sorted(NETS), default="plan")
        if name == "inference":
            sub.add_argument("--max-batch", type=int, default=2048, help="largest batch")
        if name == "numerics":
            sub.add_argument("--checkpoint", type=Path, help="a trained network, instead of one fitted here")
        if name == "signature":
            sub.add_argument("--workers", type=int)
            sub.add_argument("--max-batch", type=int)
    for name, text in (("report", "writes REPORT.md and pictures from the JSON files beside it"),
                       ("all", "every benchmark, quickly, into JSON files, and the report: under ten minutes")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("--results", type=Path, default=RESULTS, help=f"folder of the JSON files (default {RESULTS})")
    return top


def measure(given: argparse.Namespace) -> None:
    """Run one benchmark, print its lines, keep them where that is asked for."""
    results = BENCHMARKS[given.name](given)
    for result in results:
        print(result.line(), flush=True)
    if given.json:
        settings = {key: str(value) for key, value in vars(given).items() if key not in ("json", "csv")}
        given.json.write_text(json.dumps(
            {"benchmark": given.name, "machine": machine(), "settings": settings,
             "results": [dataclasses.asdict(result) for result in results]}, indent=1) + "\n")
    if given.csv:
        with given.csv.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow([field.name for field in dataclasses.fields(Result)])
            table.writerows(dataclasses.astuple(result) for result in results)


def main() -> int:
    commands = parser()
    given = commands.parse_args()
    if _core.BUILD != "release":
        print(f"error: this is a {_core.BUILD} build; its figures mean nothing", file=sys.stderr)
        return 2
    if getattr(given, "repeats", 1) < 1:
        print(f"error: --repeats is {given.repeats}; allowed: 1 and up", file=sys.stderr)
        return 2
    try:
        if given.name == "all":
            given.results.mkdir(parents=True, exist_ok=True)
            for name in BENCHMARKS:
                if name == "tune":
                    continue  # it looks for settings, it does not judge them
                print(f"\n{name}")
                quick = ["--quick", "--repeats", "2", "--json", str(given.results / f"{name}.json")]
                measure(commands.parse_args([name, *quick]))
        if given.name in ("all", "report"):
            print(report.write(given.results))
        else:
            measure(given)
    except (ShmzeroError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
