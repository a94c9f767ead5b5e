"""Benchmark of a service's clients against what they replace. Run by bench.py, as `clients`.

Latency of one client (median and 99th percentile of a call) and rows a second of several, for the ring,
a multiprocessing.Queue, Manager queues (30 rows as one message, and as 30 as the plan had it), pipes and the
model in each process. All in one run, with the same model, interleaved. The server is always a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from shmzero import Client
from tools.baselines import DirectEvaluator, PipeService, QueueService
from tools.measure import Result

ROOT = Path(__file__).resolve().parent.parent
STATE_DIM, ACTION_DIM, VALUE_DIM = 256, 52, 1


def trivial(states: Any, masks: Any) -> tuple[Any, Any]:
    """Next to no work: what is measured is the way there and back."""
    return masks.astype(np.float32), states[:, :VALUE_DIM]


def make_trivial() -> Any:
    return trivial


def make_plan() -> Any:
    """The network `plan` in float32, one thread, as a function of numpy arrays."""
    import torch

    from shmzero.config import NETS
    from shmzero.evaluators import NetEvaluator
    from shmzero.net import BlobNet

    torch.set_num_threads(1)
    return NetEvaluator(BlobNet(NETS["plan"])).evaluate_many


MODELS = {"trivial": make_trivial, "plan": make_plan}


class _RingService:
    """`python -m shmzero.serve` in a process."""

    def __init__(self, model: str) -> None:
        self.name = f"bench-{secrets.token_hex(4)}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shmzero.serve", "--name", self.name, "--model", f"tools.bench_clients:make_{model}",
             "--threads", "1"],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if not line.startswith("serving"):
            raise RuntimeError(line + self._process.stderr.read())

    def client(self, index: int) -> Client:
        return Client(self.name)

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate()


class _DirectService:
    def __init__(self, model: str) -> None:
        self._make = MODELS[model]

    def client(self, index: int) -> _Direct:
        return _Direct(self._make)

    def close(self) -> None:
        pass


class _Direct:
    """Loads its model where it is used."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._evaluator: DirectEvaluator | None = None

    def evaluate_many(self, states: Any, masks: Any) -> tuple[Any, Any]:
        self._evaluator = self._evaluator or DirectEvaluator(self._make)
        return self._evaluator.evaluate_many(states, masks)

    def evaluate(self, state: Any, mask: Any) -> tuple[Any, Any]:
        policies, values = self.evaluate_many(state[None], mask[None])
        return policies[0], values[0]


class _OneQueueService:
    def __init__(self, model: str, kind: str, num_clients: int, per_row: bool) -> None:
        self._service = QueueService(MODELS[model], num_clients, kind)
        self._per_row = per_row

    def client(self, index: int) -> Any:
        return self._service.client(index, self._per_row)

    def close(self) -> None:
        self._service.close()


def transports(model: str, num_clients: int) -> dict[str, Callable[[], Any]]:
    """What can be measured, by name."""
    return {
        "ring": lambda: _RingService(model),
        "queue": lambda: _OneQueueService(model, "queue", num_clients, per_row=False),
        "manager": lambda: _OneQueueService(model, "manager", num_clients, per_row=False),
        "manager, a message a row": lambda: _OneQueueService(model, "manager", num_clients, per_row=True),
        "pipe": lambda: PipeService(MODELS[model], num_clients),
        "direct": lambda: _DirectService(model),
    }


def _rows(count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return rng.random((count, STATE_DIM), np.float32), rng.random((count, ACTION_DIM)) < 0.5


def _check(client: Any, model: Any) -> None:
    """What is fast must also be right."""
    states, masks = _rows(30)
    expected = model(states, masks)
    found = client.evaluate_many(states, masks)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def _times_us(client: Any, rows: int, seconds: float) -> list[float]:
    """Microseconds of each call within so many seconds."""
    states, masks = _rows(rows)
    if rows == 1:
        state, mask = states[0], masks[0]

        def call() -> Any:
            return client.evaluate(state, mask)
    else:

        def call() -> Any:
            return client.evaluate_many(states, masks)

    for _ in range(3):
        call()
    times = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return times


def bench_latency(
    names: Iterable[str], row_counts: Iterable[int], seconds: float, repeats: int, model: str = "trivial"
) -> dict[tuple[str, int], tuple[float, float]]:
    """(median, 99th percentile) microseconds of a call by (transport, rows); medians over `repeats`."""
    row_counts = list(row_counts)
    made = transports(model, 1)
    services = {name: made[name]() for name in names}
    figures: dict[tuple[str, int], list[tuple[float, float]]] = {}
    try:
        clients = {name: service.client(0) for name, service in services.items()}
        for client in clients.values():
            _check(client, MODELS[model]())
        for _ in range(repeats):
            for rows in row_counts:
                for name, client in clients.items():
                    times = _times_us(client, rows, seconds)
                    cut = (statistics.median(times), float(np.percentile(times, 99)))
                    figures.setdefault((name, rows), []).append(cut)
    finally:
        for service in services.values():
            service.close()
    return {
        key: (statistics.median(f[0] for f in cuts), statistics.median(f[1] for f in cuts))
        for key, cuts in figures.items()
    }


def _count_rows(client: Any, rows: int, seconds: float, barrier: Any, counts: Any) -> None:
    states, masks = _rows(rows)
    client.evaluate_many(states, masks)
    barrier.wait()
    end = time.perf_counter() + seconds
    done = 0
    while time.perf_counter() < end:
        client.evaluate_many(states, masks)
        done += rows
    counts.put(done)


def bench_throughput(
    names: Iterable[str], num_clients: int, rows: int, seconds: float, repeats: int, model: str = "trivial"
) -> dict[str, float]:
    """Rows a second of `num_clients` processes that ask for `rows` a time, by transport; medians."""
    context = multiprocessing.get_context("spawn")
    figures: dict[str, list[float]] = {}
    made = transports(model, num_clients)
    for _ in range(repeats):
        for name in names:
            service = made[name]()
            try:
                barrier, counts = context.Barrier(num_clients), context.Queue()
                programs = [
                    context.Process(target=_count_rows, args=(service.client(i), rows, seconds, barrier, counts))
                    for i in range(num_clients)
                ]
                for program in programs:
                    program.start()
                total = sum(counts.get(timeout=120) for _ in programs)
                for program in programs:
                    program.join()
                figures.setdefault(name, []).append(total / seconds)
            finally:
                service.close()
    return {name: statistics.median(values) for name, values in figures.items()}


def bench_clients(given: argparse.Namespace) -> list[Result]:
    """A service's clients against queue servers, pipes and a model in each process; same model, in turns."""
    quick, repeats = given.quick, given.repeats
    seconds = 0.5 if quick else 2.0
    names = list(transports("trivial", 1))
    latency = bench_latency(names, (1, 30) if quick else (1, 30, 128, 256), seconds, repeats)
    results = []
    for (name, rows), (median, tail) in latency.items():
        goal = "<= 25" if (name, rows) == ("ring", 1) else ""
        results.append(Result(f"{name}: {rows} rows, median", median, "us", goal))
        results.append(Result(f"{name}: {rows} rows, 99 %", tail, "us"))
    for rows, goal_times in ((1, 40), (30, 100)):
        ring = latency["ring", rows][0]
        for name in names[1:]:
            least = f">= {goal_times}" if name == ("manager" if rows == 1 else "manager, a message a row") else ""
            results.append(Result(f"ring against {name}, {rows} rows", latency[name, rows][0] / ring, "times", least))
    for num_clients in (3,) if quick else (1, 3, 8, 32):
        for name, rate in bench_throughput(names, num_clients, 30, seconds, 1 if quick else repeats).items():
            results.append(Result(f"{name}: {num_clients} clients, 30 rows a time", rate, "rows/s"))
    return results
