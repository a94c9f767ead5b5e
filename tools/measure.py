"""What every benchmark shares: results, interleaved repeats, real rows, the machine's description."""

from __future__ import annotations

import argparse
import ctypes.util
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from shmzero import SearchConfig, _core, play_rounds
from shmzero.machine import cores
from shmzero.mcts.evaluators import HashEvaluator

PLAN_ROUNDS_PER_MIN = 36.7
"""Of the design that this one replaces: 32 workers, RTX 4060, 90 simulations a decision, 4 players, 5 cards."""


@dataclass
class Result:
    """One line of the output. `low` and `high` are the extremes of the repeats, where there were some."""

    name: str
    value: float | str
    unit: str = ""
    goal: str = ""
    low: float | None = None
    high: float | None = None

    def line(self) -> str:
        spread = "" if self.low is None or self.high is None else f"{figure(self.low)} .. {figure(self.high)}"
        return f"{self.name:<46} {figure(self.value):>14} {self.unit:<14} {self.goal:<18} {spread}".rstrip()


def figure(value: float | str) -> str:
    """A value as people read it."""
    if isinstance(value, str):
        return value
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


@dataclass(frozen=True)
class Spread:
    """Median and extremes of a figure's repeats."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(figures: Sequence[float]) -> Spread:
        return Spread(statistics.median(figures), min(figures), max(figures))

    def result(self, name: str, unit: str = "", goal: str = "") -> Result:
        return Result(name, self.median, unit, goal, self.low, self.high)


def interleaved(bodies: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Spread]:
    """Each body's figure over rounds in which every body runs once: what disturbs one disturbs all."""
    figures: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(repeats):
        for name, body in bodies.items():
            figures[name].append(body())
    return {name: Spread.of(got) for name, got in figures.items()}


def ratio(name: str, pairs: list[tuple[float, float]], goal: str = "") -> Result:
    """The median of ratios taken within repeats: steadier than a ratio of medians."""
    ratios = [a / b for a, b in pairs]
    return Result(name, statistics.median(ratios), "", goal, min(ratios), max(ratios))


def real_rows(count: int) -> tuple[NDArray[np.float16], NDArray[np.uint64]]:
    """(features [count, 256], masks [count]) of decisions of real rounds, repeated where they are few."""
    records = play_rounds(HashEvaluator(), 400, SearchConfig(determinizations=1, simulations=8), seed=5)
    rows = _core.replay(records)
    take = np.arange(count) % len(rows["masks"])
    return rows["features"][take], rows["masks"][take]


def windowed(calls: Callable[[], int], seconds: float) -> float:
    """Rows a second of `calls()`, each of which returns its rows, up to the last that ended within `seconds`.

    What ends later does not count; where nothing ended in time, it is the one call that took longer.
    """
    start = time.perf_counter()
    rows, counted_s = 0, 0.0
    while True:
        more = calls()
        spent = time.perf_counter() - start
        if spent <= seconds or not rows:
            rows, counted_s = rows + more, spent
        if spent >= seconds:
            return rows / counted_s


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """What is started within does not hear a Ctrl-C: it is this process that ends its children."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def gpu_name() -> str | None:
    """The first GPU; asks torch only where it is imported already."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    if shutil.which("nvidia-smi"):
        said = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                              capture_output=True, text=True)  # fmt: skip
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.splitlines()[0].strip()
    return None


def jemalloc() -> str:
    """preloaded (as env/perf.sh does it), installed or not found."""
    if "jemalloc" in Path("/proc/self/maps").read_text():
        return "preloaded"
    return "installed" if ctypes.util.find_library("jemalloc") else "not found"


def output_file(text: str) -> Path:
    """A file to be written at the end, for argparse: refused before the measurement where its folder is missing."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def json_flag(parser: argparse.ArgumentParser) -> None:
    """Add --json FILE, where `keep` writes."""
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="keep the results and what they were measured on"
    )


def keep(
    path: Path, benchmark: str, described: dict[str, Any], settings: dict[str, Any], results: Sequence[Result]
) -> None:
    """Write results as JSON; `described` is what `machine` said before the first of them was measured."""
    acted = {name: str(value) for name, value in settings.items() if name not in ("json", "csv")}
    lines = [dataclasses.asdict(result) for result in results]
    whole = {"benchmark": benchmark, "machine": described, "settings": acted, "results": lines}
    path.write_text(json.dumps(whole, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on. Imports no torch."""
    info = Path("/proc/cpuinfo").read_text()

    def said(field: str) -> str:
        lines = (line.partition(":") for line in info.splitlines())
        return next((value.strip() for name, _, value in lines if name.strip() == field), "")

    cpu = said("model name")
    # A virtual machine may hide the product: "AMD EPYC" is of four generations, family and model tell which.
    if said("cpu family"):
        cpu += f" (family {said('cpu family')}, model {said('model')})"
    flags = sorted(f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in info)

    def git(*words: str) -> str:
        root = str(Path(__file__).resolve().parent.parent)
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True).stdout.strip()

    # What is measured is the code: results that were written meanwhile make it no other one.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!tools/results", ":!README.md")
    commit = git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": importlib.metadata.version("torch"),
    }
    return {
        "cpu": cpu,
        "flags": flags,
        "cores": cores(),
        "gpu": gpu_name(),
        "memory_gb": round(memory, 1),
        "kernel": platform.release(),
        "jemalloc": jemalloc(),
        "versions": versions,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }
