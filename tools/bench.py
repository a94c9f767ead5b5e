#!/usr/bin/env python3
"""Measures the engine: python tools/bench.py NAME; --help lists the names.

Each result is a name, a value, a unit and, where there is one, a goal. Repeats are interleaved and the
median is shown. --save FILE keeps the results with machine, versions, commit and settings.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any, Protocol

try:
    from shmzero import _core
    from shmzero.cli.command import run_command
    from shmzero.cli.interrupts import STARTED
    from shmzero.engine.config import SelfPlayConfig
    from shmzero.errors import ConfigError, RecordError, ShmzeroError
    from tools.benchmarks import (
        ablate,
        cluster,
        inference,
        numerics,
        report,
        scaling,
        search,
        selfplay,
        short,
        signature,
        training,
        transport,
        tune,
    )  # fmt: skip
    from tools.benchmarks.machine import machine
    from tools.benchmarks.measure import Result
    from tools.benchmarks.options import ToolParser, as_json, csv_flag, output_flags, put_out, save
except ImportError as error:
    sys.exit(f"error: {error}; start it as: env/run python tools/bench.py")

RESULTS = Path(__file__).parent / "results"


class Benchmark(Protocol):
    """What each module of tools/benchmarks that is a benchmark has; the docstring of `measure` is its help."""

    def measure(self, given: argparse.Namespace) -> list[Result]: ...

    def add_options(self, sub: argparse.ArgumentParser) -> None: ...


BENCHMARKS: dict[str, Benchmark] = {
    "search": search,
    "inference": inference,
    "numerics": numerics,
    "transport": transport,
    "signature": signature,
    "selfplay": selfplay,
    "short": short,
    "scaling": scaling,
    "ablate": ablate,
    "tune": tune,
    "training": training,
    "cluster": cluster,
}
WITH_DEVICE = {"inference", "numerics", "selfplay", "short", "scaling", "ablate", "tune", "training"}
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
    "training": (50, "--quick --minutes 0.3 --deals 40 --match-opponents threshold"),
    "cluster": (60, "--quick --repeats 1 --nodes 1 8"),
}
"""What `all` runs, and for about how many seconds on two cores; what would end after ALL_S is left out.
`tune` is not among them: it looks for settings, it does not judge them."""


def parser() -> argparse.ArgumentParser:
    """One subcommand a benchmark, and two that make use of them."""
    top = ToolParser(
        prog="tools/bench.py",
        description="Measures the engine.",
        epilog="example: env/run python tools/bench.py selfplay --presets medium --save tools/results/selfplay.json",
    )
    commands = top.add_subparsers(dest="name", required=True, metavar="|".join([*BENCHMARKS, "report", "all"]))
    for name, benchmark in BENCHMARKS.items():
        sub = commands.add_parser(name, help=(benchmark.measure.__doc__ or "").splitlines()[0])
        output_flags(sub)
        csv_flag(sub, "--output") if name == "selfplay" else csv_flag(sub)
        benchmark.add_options(sub)
    sub = commands.add_parser("report", help="writes a page with pictures, README.md, from the JSON files beside it")
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
    """Run one benchmark, print its results, keep them where that is asked for."""
    results = BENCHMARKS[given.name].measure(given)
    put_out("bench", given, described, results)
    if given.csv and given.name == "selfplay":
        selfplay.write_table(given.csv, results, given)
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
        if name == "cluster" and importlib.util.find_spec("ray") is None:
            print(
                f'\n{name}\nleft out: Ray is not installed; install it with: pip install "shmzero[cluster]"', flush=True
            )
            lasted.append(Result(name, "left out"))
            continue
        print(f"\n{name}", flush=True)
        arguments = [name, *flags.split(), "--save", str(given.results / f"{name}.json")]
        if name in WITH_DEVICE:
            arguments += ["--device", given.device]
        try:
            measure(parser().parse_args(arguments), described)
        except (ShmzeroError, OSError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            code = 1
        lasted.append(Result(name, time.monotonic() - start, "s"))
    lasted.append(Result("from the command on", time.monotonic() - STARTED, "s", f"<= {ALL_S:.0f}"))
    save(given.results / "all.json", as_json("bench", given.name, given, described, lasted))
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
        SelfPlayConfig.of(device=given.device).inference.check_devices()
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
