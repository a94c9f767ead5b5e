#!/usr/bin/env python3
"""Measures the engine: python tools/bench.py search | inference | transport | selfplay | signature | numerics.

Each result is a name, a value, a unit and, where there is one, a goal. Repeats are interleaved and the
median is shown. --json FILE keeps the results with machine, versions, commit and settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from shmzero import SearchConfig, _core, play_rounds
from shmzero.config import NETS, PRESETS, SelfPlayConfig, cores, play_settings
from shmzero.errors import ShmzeroError
from shmzero.evaluators import HashEvaluator, NetEvaluator
from shmzero.launch import Fleet
from shmzero.records import Records
from shmzero.selfplay import run


@dataclass
class Result:
    """One line of the output."""

    name: str
    value: float | str
    unit: str
    goal: str = ""

    def line(self) -> str:
        if isinstance(self.value, str):
            shown = self.value
        else:
            shown = f"{self.value:,.4g}" if abs(self.value) < 100 else f"{self.value:,.0f}"
        return f"{self.name:<44} {shown:>16} {self.unit:<14} {self.goal}"


def interleaved(bodies: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median of each body's figure over rounds in which every body runs once."""
    figures: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(repeats):
        for name, body in bodies.items():
            figures[name].append(body())
    return {name: statistics.median(values) for name, values in figures.items()}


def preset(name: str, **more: Any) -> SearchConfig:
    worlds, simulations = PRESETS[name]
    return SearchConfig(determinizations=worlds, simulations=simulations, noise_fraction=0.25, **more)


def bench_search(given: argparse.Namespace) -> list[Result]:
    """The search alone: encoding included, a uniform evaluator whose own time is taken off."""
    settings = play_settings(preset(given.preset))
    rounds = 300 if given.quick else 2000
    last: dict[str, Any] = {}

    def body() -> float:
        last.update(_core.bench_search(settings, given.lanes, rounds))
        return float(last["total_ns"] - last["evaluator_ns"]) / float(last["simulations"])

    ns = interleaved({"search": body}, given.repeats)["search"]
    return [
        Result(f"search {given.preset}, {given.lanes} lanes", ns, "ns/simulation", "<= 250"),
        Result("per distinct evaluation", ns * last["simulations"] / last["rows"], "ns", "<= 250"),
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
        Result("slot round trip, one row", medians["trip"], "ns", "<= 2,000"),
        Result("rows through slots of 256", medians["rows"], "rows/s", ">= 5,000,000"),
    ]


def real_rows(count: int) -> tuple[Any, Any]:
    """Features f16 and masks of positions from real rounds."""
    records = play_rounds(HashEvaluator(), 400, SearchConfig(determinizations=1, simulations=8), seed=5)
    rows = _core.replay(records)
    take = np.arange(count) % len(rows["masks"])
    return rows["features"][take], rows["masks"][take]


def bench_inference(given: argparse.Namespace) -> list[Result]:
    """Rows a second of the serving path in one thread, swappable weights, eager and compiled."""
    import torch

    from shmzero.net import BlobNet, flops_per_row
    from shmzero.net_device import CpuNetDevice, cpu_flags

    torch.set_num_threads(1)
    net = BlobNet(NETS[given.net])
    size = 1024
    a, b = torch.rand(size, size).bfloat16(), torch.rand(size, size).bfloat16()

    def peak() -> float:
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        return 4 * 2 * size**3 / (time.perf_counter() - start)

    bodies: dict[str, Callable[[], float]] = {"peak": peak}
    precisions = ["fp32"] + (["bf16"] if cpu_flags() & {"avx512_bf16", "amx_bf16"} else [])
    for precision in precisions:
        for compiled in (False, True):
            device = CpuNetDevice(net, precision, compiled, given.max_batch)
            if compiled and not device.compiled:
                continue  # the cache has no callable for it yet; the self-play command makes them
            staging = device.staging(0)
            staging.features[:], staging.masks[:] = real_rows(given.max_batch)
            for bucket in device.buckets:

                def body(device: Any = device, bucket: int = bucket) -> float:
                    start = time.perf_counter()
                    for _ in range(3):
                        device.launch(0, bucket)
                    return 3 * bucket / (time.perf_counter() - start)

                body()
                kind = "compiled" if compiled else "eager"
                bodies[f"{kind} {precision} {bucket} rows"] = body
    medians = interleaved(bodies, given.repeats)
    peak_rate = medians.pop("peak")
    results = [Result(f"{name}, one thread", value, "positions/s") for name, value in medians.items()]
    best = max(medians.values())
    flops = flops_per_row(NETS[given.net])
    results.append(Result("bf16 1024^3 matrix product, one thread", peak_rate / 1e9, "GFLOP/s"))
    results.append(Result("best, share of that product's rate", best * flops / peak_rate, ""))
    return results


def bench_selfplay(given: argparse.Namespace) -> list[Result]:
    """A real run, and beside it the same devices back to back on real rows: the roofline."""
    config = SelfPlayConfig(
        rounds=given.rounds, preset=given.preset, evaluator=given.evaluator, device=given.device,
        workers=given.workers, max_batch=given.max_batch, net=given.net,
    )
    with tempfile.TemporaryDirectory() as folder:
        summary = run(config, Path(folder) / "run")
    results = [
        Result(f"self-play {given.preset}", summary["rounds_per_min"], "rounds/min", ">= 6,000 with AMX"),
        Result("distinct evaluations", summary["distinct_evaluations_per_s"], "per s"),
        Result("mean batch", summary["mean_batch_rows"], "rows"),
        Result("simulations per decision", summary["simulations_per_decision"], ""),
        Result("rows per simulation", summary["rows_per_simulation"], "", "<= 1.5"),
        Result("record", summary["record_bytes_per_round"], "bytes/round", "<= 1,500"),
        Result("first round after", summary["first_round_s"] or 0.0, "s", "<= 5"),
    ]
    steady_rate, private_mb, roofline_rate = steady(config, given)
    results += [
        Result("steady distinct evaluations", steady_rate, "per s"),
        Result("worker private memory", private_mb, "MB", "<= 60"),
    ]
    if config.evaluator == "net":
        results += [
            Result("roofline of the same processes", roofline_rate, "per s"),
            Result("roofline_share", steady_rate / roofline_rate, "", ">= 0.9"),
        ]
    return results


def private_mb_of(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1000


def steady(config: SelfPlayConfig, given: argparse.Namespace) -> tuple[float, float, float]:
    """(evaluations/s with all lanes busy, private MB of the largest worker, roofline evaluations/s)."""
    seconds = 5.0 if given.quick else 15.0
    rates, rooflines = [], []
    private = 0.0
    with Fleet(config, iter(range(10**9)), 10**6) as fleet:
        warm_until = None
        while warm_until is None or time.monotonic() < warm_until:
            if fleet.poll(0.05) and warm_until is None:
                warm_until = time.monotonic() + seconds
        for _ in range(given.repeats):
            before, start = fleet.counters(), time.monotonic()
            while time.monotonic() - start < seconds:
                fleet.poll(0.05)
            after = fleet.counters()
            rates.append((after["rows"] - before["rows"]) / (time.monotonic() - start))
            if config.evaluator == "net":
                pids = [pid for kind in fleet.pids().values() for pid in kind]
                for pid in pids:
                    os.kill(pid, 19)  # SIGSTOP: the machine is the roofline's alone
                rooflines.append(roofline(config, fleet.plan.threads, len(fleet.plan.devices), seconds))
                for pid in pids:
                    os.kill(pid, 18)  # SIGCONT
        private = max(private_mb_of(pid) for pid in fleet.pids()["workers"])
    return statistics.median(rates), private, statistics.median(rooflines) if rooflines else 0.0


def roofline(config: SelfPlayConfig, threads: int, processes: int, seconds: float) -> float:
    """Rows/s of the serving devices alone, back to back on real rows."""
    spec = {
        "evaluator": "net", "device": config.devices()[0], "precision": config.precision,
        "compile": config.compile, "max_batch": config.max_batch or 512, "threads": threads,
        "net": dataclasses.asdict(NETS[config.net]), "checkpoint": None, "seed": 0, "seconds": seconds,
    }
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    children = [
        subprocess.Popen([sys.executable, __file__, "roofline-child", json.dumps(spec)],
                         stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(processes)
    ]
    return sum(float(child.communicate()[0]) for child in children)


def roofline_child(spec: dict[str, Any]) -> None:
    from shmzero.evaluators import make_device

    device = make_device(spec)
    rows = spec["max_batch"]
    for stage in range(device.num_stages):
        staging = device.staging(stage)
        staging.features[:], staging.masks[:] = real_rows(rows)
        device.launch(stage, rows)
        device.wait(stage)
    start, done, stage = time.monotonic(), 0, 0
    while time.monotonic() - start < spec["seconds"]:
        device.launch(stage, rows)
        stage = (stage + 1) % device.num_stages
        if device.num_stages > 1:
            device.wait(stage)
        done += rows
    print(done / (time.monotonic() - start))


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

    from shmzero.net_device import CpuNetDevice, resolve_precision
    from tools.fit import fitted_net, wide_masks

    torch.set_num_threads(cores())
    net = fitted_net(NETS[given.net], 100 if given.quick else 300, rounds=400, lr=5e-4, certain=True)
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
    served = ["fp32"] + (["bf16"] if resolve_precision("auto", "cpu") == "bf16" else [])
    for precision in served:
        for compiled in (False, True):
            device = CpuNetDevice(net, precision, compiled, 512)
            if compiled and 512 not in device.compiled:
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


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")), "")
    flags = sorted(f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in info)
    commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
                            capture_output=True, text=True).stdout.strip()
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    if "torch" in sys.modules:
        versions["torch"] = sys.modules["torch"].__version__
    return {"cpu": model, "flags": flags, "cores": cores(), "memory_gb": round(memory, 1), "kernel": platform.release(),
            "versions": versions, "commit": commit, "date": time.strftime("%Y-%m-%d")}


BENCHMARKS = {
    "search": bench_search,
    "inference": bench_inference,
    "transport": bench_transport,
    "selfplay": bench_selfplay,
    "signature": bench_signature,
    "numerics": bench_numerics,
}


def main() -> int:
    if sys.argv[1:2] == ["roofline-child"]:
        roofline_child(json.loads(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(
        prog="tools/bench.py", description="Measures the engine.",
        epilog="example: env/run python tools/bench.py selfplay --preset medium --json tools/results/selfplay.json",
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="|".join(BENCHMARKS))
    for name, body in BENCHMARKS.items():
        sub = commands.add_parser(name, help=(body.__doc__ or "").splitlines()[0])
        sub.add_argument("--json", type=Path, metavar="FILE", help="keep the results with what they were measured on")
        sub.add_argument("--quick", action="store_true", help="shorter, noisier")
        sub.add_argument("--repeats", type=int, default=3, help="interleaved repeats (default 3)")
        if name in ("search", "selfplay"):
            sub.add_argument("--preset", choices=sorted(PRESETS), default="medium")
        if name == "search":
            sub.add_argument("--lanes", type=int, default=256)
        if name in ("inference", "selfplay", "numerics"):
            sub.add_argument("--net", choices=sorted(NETS), default="plan")
        if name == "inference":
            sub.add_argument("--max-batch", type=int, default=512)
        if name in ("selfplay", "signature"):
            sub.add_argument("--workers", type=int)
            sub.add_argument("--max-batch", type=int)
        if name == "selfplay":
            sub.add_argument("--rounds", type=int, default=500)
            sub.add_argument("--device", default="auto")
            sub.add_argument("--evaluator", choices=["net", "hash", "uniform"], default="net")
    given = parser.parse_args()
    if _core.BUILD != "release":
        print(f"error: this is a {_core.BUILD} build; its figures mean nothing", file=sys.stderr)
        return 2
    if given.repeats < 1:
        print(f"error: --repeats is {given.repeats}; allowed: 1 and up", file=sys.stderr)
        return 2
    try:
        results = BENCHMARKS[given.name](given)
    except ShmzeroError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for result in results:
        print(result.line())
    if given.json:
        settings = {key: str(value) for key, value in vars(given).items() if key != "json"}
        given.json.write_text(json.dumps(
            {"benchmark": given.name, "machine": machine(), "settings": settings,
             "results": [dataclasses.asdict(result) for result in results]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
