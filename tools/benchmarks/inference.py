"""Benchmark `inference`: the network alone, on the devices that the engine serves it from.

What serves takes its weights as arguments, so that they can be swapped between two batches while the
compiled callable stays. Inductor's freezing writes the weights into what it compiles: faster, but each new
checkpoint would have to be compiled before it could serve, half a minute a swap. `--frozen` measures what
that would bring; nothing serves it. Read next: serving.py, shmzero/inference/net_device.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shmzero.errors import WorkerDied
from shmzero.inference.device import BatchDevice
from shmzero.nets.config import NETS
from tools.benchmarks.measure import Result, interleaved, real_rows
from tools.benchmarks.options import quick_flag, repeats_flag
from tools.benchmarks.serving import device_name, precisions, rows_per_s, serving_device

SIZES = (1, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Rows of a batch."""


def matrix_product(device: str, precision: str) -> tuple[int, Callable[[], float]]:
    """(n, a function that gives the FLOP/s of n x n products on the device)."""
    import torch

    from shmzero.nets.precision import DTYPES

    size = 1024 if device == "cpu" else 8192
    square = torch.rand(size, size).to(device, DTYPES[precision])

    def finish() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    def body() -> float:
        finish()
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(square, square)
        finish()
        return 4 * 2 * size**3 / (time.perf_counter() - start)

    body()
    return size, body


def frozen_body(given: argparse.Namespace, precision: str, rows: int) -> Callable[[], float]:
    """Rows a second of the network with its weights compiled in, on a CPU: not a way to serve, see above."""
    import torch

    from shmzero.nets.blob_net import BlobNet
    from shmzero.nets.inference_net import InferenceNet

    function = InferenceNet(NETS[given.net], precision)
    weights = function.weights(BlobNet(NETS[given.net]))

    class Frozen(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList([torch.nn.Parameter(w, requires_grad=False) for w in weights])

        def forward(self, features: Any, masks: Any) -> Any:
            return function(features, masks, *self.weights)

    features, masks = (torch.from_numpy(part) for part in real_rows(rows))
    words = masks.view(torch.int64)
    call = torch.compile(Frozen().eval(), dynamic=False, options={"freezing": True})

    def body() -> float:
        done, start = 0, time.perf_counter()
        with torch.no_grad():
            while time.perf_counter() - start < 0.3:
                call(features, words)
                done += rows
        return done / (time.perf_counter() - start)

    body()
    return body


@contextmanager
def _empty_cache(folder: str) -> Iterator[None]:
    before = os.environ.get("SHMZERO_CACHE")
    os.environ["SHMZERO_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["SHMZERO_CACHE"]
        else:
            os.environ["SHMZERO_CACHE"] = before


def compile_times(given: argparse.Namespace) -> list[Result]:
    """Seconds to the compiled network that `auto` serves, from an empty cache and from a full one."""
    from shmzero.nets.blob_net import BlobNet
    from shmzero.nets.compiled import load_package, package_path, start_compiler
    from shmzero.nets.inference_net import InferenceNet
    from shmzero.nets.precision import resolve_precision

    device = device_name(given)
    precision = resolve_precision("auto", device)
    made = InferenceNet(NETS[given.net], precision), device
    kept = package_path(*made)
    with tempfile.TemporaryDirectory() as folder:
        with _empty_cache(folder):
            start = time.perf_counter()
            helper = start_compiler(*made)
            assert helper is not None
            if helper.wait():
                raise WorkerDied(f"the compile helper ({precision}, {device}) ended with status {helper.returncode}")
            cold = time.perf_counter() - start
            path = package_path(*made)
        weights = made[0].weights(BlobNet(NETS[given.net]), device)
        start = time.perf_counter()
        load_package(path, device, weights)
        warm = time.perf_counter() - start
        if not kept.exists():  # the devices below would only make it again
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copy(path, f"{kept}.{os.getpid()}")
            Path(f"{kept}.{os.getpid()}").replace(kept)
    return [
        Result(f"compile {precision}, empty cache", cold, "s"),
        Result(f"compile {precision}, from the cache", warm, "s"),
    ]


def measure(given: argparse.Namespace) -> list[Result]:
    """Rows a second of the serving path (on a CPU in one thread), swappable weights, eager and compiled."""
    import torch

    from shmzero.inference.cuda import CUDA_BUCKETS
    from shmzero.nets.blob_net import flops_per_row

    device = device_name(given)
    where = "one thread" if device == "cpu" else device
    torch.set_num_threads(1)
    serving_device(given, "fp32", False, 1)  # which says so in one line where there is no such device
    results = compile_times(given) if given.compile else []
    most = given.max_batch or (4096 if device == "cpu" else CUDA_BUCKETS[-1])
    seconds = 0.1 if given.quick else 0.3
    bodies: dict[str, Callable[[], float]] = {}
    square = 0
    for precision in precisions(device):
        for compiled in (False, True) if given.compile else (False,):
            served = serving_device(given, precision, compiled, most)
            for count in (size for size in SIZES if size <= most):

                def body(served: BatchDevice = served, count: int = count) -> float:
                    return rows_per_s(served, count, seconds)

                body()
                bodies[f"{'compiled' if compiled else 'eager'} {precision} {count} rows"] = body
        if given.frozen and device == "cpu":
            bodies[f"frozen {precision} {min(1024, most)} rows"] = frozen_body(given, precision, min(1024, most))
        square, bodies[f"{precision} product"] = matrix_product(device, precision)  # the device has allowed TF32
    medians = interleaved(bodies, given.repeats)
    products = {precision: medians.pop(f"{precision} product").median for precision in precisions(device)}
    results += [spread.result(f"{name}, {where}", "positions/s") for name, spread in medians.items()]
    flops = flops_per_row(NETS[given.net])
    for precision, rate in products.items():
        best = max(spread.median for name, spread in medians.items() if precision in name and "frozen" not in name)
        results.append(Result(f"{precision} {square}^3 matrix product, {where}", rate / 1e9, "GFLOP/s"))
        results.append(Result(f"{precision}: best, share of that product's rate", best * flops / rate, ""))
    return results


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    repeats_flag(sub)
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda:N (default auto: CUDA where there is one)")
    sub.add_argument("--net", choices=sorted(NETS), default="plan")
    sub.add_argument("--no-compile", action="store_false", dest="compile", help="eager only")
    sub.add_argument("--max-batch", type=int, help="largest batch (default 4096; on CUDA 16384)")
    sub.add_argument("--frozen", action="store_true", help="also with weights compiled in, which nothing serves")
