"""What the figures were measured on."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from shmzero.machine import cores

ROOT = Path(__file__).resolve().parents[2]


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
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

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
