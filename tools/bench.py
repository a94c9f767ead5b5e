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
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shmzero import SearchConfig, _core
from shmzero.cli.command import run_command
from shmzero.cli.flags import Parser
from shmzero.cli.interrupts import STARTED
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.run import run
from shmzero.errors import ConfigError, RecordError, ShmzeroError
from shmzero.mcts.config import PRESETS
from shmzero.mcts.play import play_settings
from shmzero.runs.records import Records
from tools import bench_inference, bench_selfplay, bench_training, bench_transport, report
from tools.measure import Result, interleaved, json_flag, keep, machine, output_file


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


def bench_signature(given: argparse.Namespace) -> list[Result]:
    """One hash of the records of fixed runs with the hash evaluator: the same on every machine."""
    total = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        for leaves in (1, 4):
            config = SelfPlayConfig(
                rounds=100,
                preset="light",
                evaluator="hash",
                leaves_in_flight=leaves,
                workers=given.workers,
                max_batch=given.max_batch,
            )
            path = Path(folder) / str(leaves)
            run(config, path)
            with Records(path) as records:
                for record in records:
                    total.update(record)
    return [Result("signature", total.hexdigest(), "sha256")]


RESULTS = Path(__file__).parent / "results"
BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Result]]] = {
    "search": bench_search,
    **bench_inference.BENCHMARKS,
    "transport": bench_transport.bench_transport,
    "signature": bench_signature,
    **bench_selfplay.BENCHMARKS,
    "training": bench_training.bench_training,
}
ALL_S = 600.0
"""Longest `all`, all in."""
ALL: dict[str, tuple[float, str]] = {
    "search": (10, "--quick --repeats 2"),
    "signature": (10, ""),
    "transport": (40, "--quick --repeats 2 --clients 1 4 16 --rows 1 30 256"),
    "inference": (90, "--quick --repeats 2"),
    "selfplay": (120, "--quick --repeats 2 --rounds 50"),
    "scaling": (40, "--repeats 2 --seconds 2 --workers 1 8 64"),
    "short": (20, "--repeats 1"),
    "ablate": (110, "--quick --repeats 1 --seconds 1"),
    "numerics": (50, "--quick --steps 200"),
    "training": (50, "--quick --minutes 0.3 --deals 40 --opponents threshold"),
}
"""What `all` runs, and for about how many seconds on two cores; what would end after ALL_S is left out.
`tune` is not among them: it looks for settings, it does not judge them."""


def parser() -> argparse.ArgumentParser:
    """One subcommand a benchmark, and two that make use of them."""
    top = Parser(
        prog="tools/bench.py",
        description="Measures the engine.",
        epilog="example: env/run python tools/bench.py selfplay --presets medium --json tools/results/selfplay.json",
    )
    commands = top.add_subparsers(dest="name", required=True, metavar="|".join([*BENCHMARKS, "report", "all"]))
    for name, body in BENCHMARKS.items():
        sub = commands.add_parser(name, help=(body.__doc__ or "").splitlines()[0])
        json_flag(sub)
        if name == "selfplay":
            sub.add_argument(
                "--csv", "--output", dest="csv", type=output_file, metavar="FILE", help="a table, a row a preset"
            )
        else:
            sub.add_argument("--csv", type=output_file, metavar="FILE", help="the results as a table")
        if name not in ("signature", "short"):
            sub.add_argument("--quick", action="store_true", help="shorter, noisier")
        if name not in ("signature", "numerics", "training"):
            sub.add_argument("--repeats", type=int, default=3, help="interleaved repeats (default 3)")
        if name in bench_selfplay.BENCHMARKS:
            bench_selfplay.add_options(name, sub)
        if name in bench_inference.BENCHMARKS:
            bench_inference.add_options(name, sub)
        if name == "transport":
            bench_transport.add_options(sub)
        if name == "training":
            bench_training.add_options(sub)
        if name == "search":
            sub.add_argument("--preset", choices=sorted(PRESETS), default="medium")
            sub.add_argument("--lanes", type=int, default=256)
        if name == "signature":
            sub.add_argument("--workers", type=int)
            sub.add_argument("--max-batch", type=int)
    sub = commands.add_parser("report", help="writes REPORT.md and pictures from the JSON files beside it")
    sub.add_argument("--results", type=Path, default=RESULTS, help=f"folder of the JSON files (default {RESULTS})")
    sub = commands.add_parser(
        "all",
        help="every benchmark, quickly, into JSON files, and the report: under ten minutes",
        description=f"Runs {', '.join(ALL)}; what would end after ten minutes is left out, and said.",
    )
    sub.add_argument("--device", default="auto", help="auto, cpu, cpu*2, cuda, cuda:0,cuda:1")
    sub.add_argument(
        "--results",
        type=Path,
        default=Path("runs/bench"),
        help="folder of the JSON files and of the report (default runs/bench)",
    )
    return top


def measure(given: argparse.Namespace, described: dict[str, Any]) -> None:
    """Run one benchmark, print its lines, keep them where that is asked for."""
    results = BENCHMARKS[given.name](given)
    for result in results:
        print(result.line(), flush=True)
    if given.json:
        keep(given.json, given.name, described, vars(given), results)
    if given.csv and given.name == "selfplay":
        bench_selfplay.write_table(given.csv, results, given)
    elif given.csv:
        with given.csv.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow([field.name for field in dataclasses.fields(Result)])
            table.writerows(dataclasses.astuple(result) for result in results)


def measure_all(given: argparse.Namespace, described: dict[str, Any]) -> int:
    """Every benchmark of ALL that fits into ALL_S. One that fails is said and does not end the others."""
    given.results.mkdir(parents=True, exist_ok=True)
    code = 0
    lasted: list[Result] = []
    for name, (estimate_s, flags) in ALL.items():
        start = time.monotonic()
        if start - STARTED + estimate_s > ALL_S:
            print(f"\n{name}\nleft out: it might end after {ALL_S:.0f} s", flush=True)
            lasted.append(Result(name, "left out"))
            continue
        print(f"\n{name}", flush=True)
        arguments = [name, *flags.split(), "--json", str(given.results / f"{name}.json")]
        if name in bench_selfplay.BENCHMARKS or name in bench_inference.BENCHMARKS or name == "training":
            arguments += ["--device", given.device]
        try:
            measure(parser().parse_args(arguments), described)
        except (ShmzeroError, OSError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            code = 1
        lasted.append(Result(name, time.monotonic() - start, "s"))
    lasted.append(Result("from the command on", time.monotonic() - STARTED, "s", f"<= {ALL_S:.0f}"))
    keep(given.results / "all.json", given.name, described, vars(given), lasted)
    print()
    for result in lasted:
        print(result.line(), flush=True)
    print(report.write(given.results))
    return code


def command(arguments: list[str] | None) -> int:
    given = parser().parse_args(arguments)
    if _core.BUILD != "release":
        print(f"error: this is a {_core.BUILD} build; its figures mean nothing", file=sys.stderr)
        return 1
    if getattr(given, "repeats", 1) < 1:
        raise ConfigError(f"--repeats is {given.repeats}; allowed: 1 and up")
    if given.name == "report":
        print(report.write(given.results))
        return 0
    if getattr(given, "device", None):
        SelfPlayConfig(device=given.device).check_devices()
    described = machine()  # before the first result is written: a commit is not dirty because of results
    if given.name == "all":
        return measure_all(given, described)
    measure(given, described)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the environment's fault, 2 a wrong setting, 130 interrupted; one line each."""

    def body() -> int:
        try:
            return command(arguments)
        except OSError as error:
            raise RecordError(str(error)) from None

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
