"""Number formats of the serving function, and which of them is the fastest here."""

from __future__ import annotations

import math
import time
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cpu_flags() -> set[str]:
    """Instruction sets of this CPU, as the kernel names them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware. It may still do so more slowly than fp32."""
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})


@cache
def bf16_is_faster() -> bool:
    """Whether a matrix product of a batch takes less time in bfloat16 than in fp32 on this CPU; tried, 20 ms.

    What the kernel says is not enough: a virtual machine may hide AMX, and what is left of bfloat16
    on such a CPU has half the rate of its fp32.
    """
    if not cpu_has_bf16():
        return False
    x, weight = (torch.ones(rows, 256, dtype=torch.float32, device="cpu") for rows in (256, 1024))
    operands = [(x.to(dtype), weight.to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    shortest = [math.inf, math.inf]
    for _ in range(8):
        for i, pair in enumerate(operands):
            start = time.perf_counter()
            F.linear(*pair)
            shortest[i] = min(shortest[i], time.perf_counter() - start)
    return shortest[1] < shortest[0]


def resolve_precision(precision: str, device: str) -> str:
    """`auto`: fp16 on CUDA; on a CPU bf16 where it is faster than fp32."""
    if precision != "auto":
        return precision
    if device != "cpu":
        return "fp16"
    return "bf16" if bf16_is_faster() else "fp32"
