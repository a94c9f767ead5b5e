"""Benchmark `transport`: slots alone, and a service's clients against what they replace. Run by bench.py.

Latency of one client (median and 99th percentile of a call) and rows a second of several, for the ring,
a multiprocessing.Queue, Manager queues (30 rows as one message, and as 30 as the plan had it), pipes, what
is installed of other_transports.py, and the model in each process. All in one run, with the same model, by
turns. The server is always a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from shmzero import Client, _core
from shmzero.errors import WorkerDied
from tools.benchmarks import other_transports
from tools.benchmarks.measure import Result, Spread, ignoring_interrupts, interleaved, windowed
from tools.benchmarks.options import quick_flag, repeats_flag
from tools.benchmarks.queues import DirectEvaluator, PipeService, QueueService
from tools.benchmarks.workload import ACTION_DIM, MODELS, STATE_DIM

NO_TRANSPORT = "direct"
"""The model where it is asked: measured, but no way to share a device."""
TURN_S = 300.0
"""Longest turn, the start of all processes included."""


SERVE = """
import signal, sys
from shmzero import _core
from shmzero import serve
_core.die_with_parent(int(sys.argv.pop(1)), signal.SIGTERM)
sys.exit(serve.main())
"""
"""`python -m shmzero.serve`, but that it goes when its parent does: a service on its own stays."""


class _RingService:
    """The service of SERVE in a process."""

    def __init__(self, model: str) -> None:
        self.name = f"bench-{secrets.token_hex(4)}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(os.getpid()), "--name", self.name, "--threads", "1",
             "--model", f"tools.benchmarks.workload:make_{model}"],
            stderr=subprocess.PIPE, text=True,
            start_new_session=True,  # a Ctrl-C is the parent's alone
        )  # fmt: skip
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if not line.startswith("serving"):
            raise WorkerDied(f"python -m shmzero.serve did not start: {line}{self._process.stderr.read()}")

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


def transports(model: str, num_clients: int, row_counts: Iterable[int]) -> dict[str, Callable[[], Any]]:
    """What can be measured, by name."""
    make = MODELS[model]
    ours: dict[str, Callable[[], Any]] = {
        "ring": lambda: _RingService(model),
        "queue": lambda: _OneQueueService(model, "queue", num_clients, per_row=False),
        "manager": lambda: _OneQueueService(model, "manager", num_clients, per_row=False),
        "manager, a message a row": lambda: _OneQueueService(model, "manager", num_clients, per_row=True),
        "pipe": lambda: PipeService(make, num_clients),
    }
    others: dict[str, Callable[[], Any]] = {
        "faster-fifo": lambda: other_transports.FifoService(make, num_clients),
        "pyzmq": lambda: other_transports.ZmqService(make, num_clients),
        "torchrl": lambda: other_transports.TorchrlService(make, num_clients, row_counts),
    }
    direct: dict[str, Callable[[], Any]] = {NO_TRANSPORT: lambda: _DirectService(model)}
    return ours | {name: others[name] for name in other_transports.installed()} | direct


def started(stack: ExitStack, makers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The services, to be closed by `stack`."""
    services = {}
    with ignoring_interrupts():
        for name, make in makers.items():
            services[name] = make()
            stack.callback(services[name].close)
    return services


def _rows(count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return rng.random((count, STATE_DIM), np.float32), rng.random((count, ACTION_DIM)) < 0.5


def _check(client: Any, model: Any, rows: int) -> None:
    """What is fast must also be right."""
    states, masks = _rows(rows)
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
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or not times:
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return times


def bench_latency(
    row_counts: Sequence[int], seconds: float, repeats: int, model: str = "trivial"
) -> dict[tuple[str, int], tuple[Spread, Spread]]:
    """(medians, 99th percentiles) of the microseconds of a call by (transport, rows), over `repeats`."""
    figures: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        services = started(stack, transports(model, 1, row_counts))
        clients = {name: service.client(0) for name, service in services.items()}
        for client in clients.values():
            for rows in row_counts:
                _check(client, MODELS[model](), rows)
        for _ in range(repeats):
            for rows in row_counts:
                for name, client in clients.items():
                    times = _times_us(client, rows, seconds)
                    cut = (statistics.median(times), float(np.percentile(times, 99)))
                    figures.setdefault((name, rows), []).append(cut)
    return {
        key: (Spread(tuple(f[0] for f in cuts)), Spread(tuple(f[1] for f in cuts))) for key, cuts in figures.items()
    }


def _ask(clients: dict[str, Any], order: Any, barrier: Any, rates: Any) -> None:
    """A program that is a client of every service and asks the one that it is told."""
    names = list(clients)
    opened: set[int] = set()
    while True:
        barrier.wait()
        which, rows, seconds = int(order[0]), int(order[1]), order[2]
        if seconds < 0:
            return
        client, (states, masks) = clients[names[which]], _rows(rows)
        if which not in opened:
            client.evaluate_many(states, masks)  # attaches, and opens what a first call opens
            opened.add(which)
        barrier.wait()

        def call(client: Any = client, states: Any = states, masks: Any = masks) -> int:
            client.evaluate_many(states, masks)
            return len(states)

        rates.put(windowed(call, seconds))


def bench_throughput(
    num_clients: int, row_counts: Sequence[int], seconds: float, repeats: int, model: str = "trivial"
) -> dict[tuple[str, int], Spread]:
    """Rows a second of `num_clients` processes by (transport, rows that they ask for at a time).

    All services are there at once and take turns; so does each number of rows.
    """
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        services = started(stack, transports(model, num_clients, row_counts))
        with ignoring_interrupts():
            order = context.Array("d", 3, lock=False)
            barrier, rates = context.Barrier(num_clients + 1), context.Queue()
            programs = [
                context.Process(
                    target=_ask,
                    daemon=True,
                    args=({name: service.client(i) for name, service in services.items()}, order, barrier, rates),
                )
                for i in range(num_clients)
            ]
            for program in programs:
                program.start()
        names = list(services)

        def turn(name: str, rows: int) -> float:
            order[:] = [names.index(name), rows, seconds]
            barrier.wait(TURN_S)
            barrier.wait(TURN_S)
            return float(sum(rates.get(timeout=TURN_S) for _ in programs))

        figures: dict[tuple[str, int], list[float]] = {}
        try:
            for _ in range(repeats):
                for rows in row_counts:
                    for name in names:
                        figures.setdefault((name, rows), []).append(turn(name, rows))
            order[:] = [0, 0, -1.0]
            barrier.wait(TURN_S)
        except (queue.Empty, threading.BrokenBarrierError):
            raise WorkerDied(f"{num_clients} clients did not all answer within {TURN_S:g} s") from None
        finally:
            for program in programs:
                program.join(timeout=5.0)
                program.kill()
    return {key: Spread(tuple(got)) for key, got in figures.items()}


def against_best(what: str, ring: Spread, others: Mapping[str, Spread], faster_is_more: bool) -> Result:
    """How many times as fast as the best other transport the ring is; the interval from extreme to extreme."""
    others = {name: spread for name, spread in others.items() if name not in ("ring", NO_TRANSPORT)}
    if faster_is_more:
        name = max(others, key=lambda n: others[n].median)
        fast, slow = ring, others[name]
    else:
        name = min(others, key=lambda n: others[n].median)
        fast, slow = others[name], ring
    ratio = fast.median / slow.median
    return Result(f"ring against the best other ({name}), {what}", ratio, "times", ">= 1",
                  fast.low / slow.high, fast.high / slow.low)  # fmt: skip


def bench_slots(given: argparse.Namespace) -> list[Result]:
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


def measure(given: argparse.Namespace) -> list[Result]:
    """Slots alone; then the ring against queues, pipes, other transports and a model in each process."""
    repeats = given.repeats
    seconds = given.seconds or (0.2 if given.quick else 0.5)
    row_counts = sorted({1, 30, *given.rows})
    results = bench_slots(given)
    latency = bench_latency(row_counts, seconds, repeats)
    for (name, rows), (median, tail) in latency.items():
        goal = "<= 25" if (name, rows) == ("ring", 1) else ""
        results.append(median.result(f"{name}: {rows} rows, median", "us", goal))
        results.append(tail.result(f"{name}: {rows} rows, 99 %", "us"))
    names = list(dict.fromkeys(name for name, _ in latency))
    for rows, goal_times in ((1, 40), (30, 100)):
        ring = latency["ring", rows][0].median
        for name in names[1:]:
            least = f">= {goal_times}" if name == ("manager" if rows == 1 else "manager, a message a row") else ""
            times = latency[name, rows][0].median / ring
            results.append(Result(f"ring against {name}, {rows} rows", times, "times", least))
    for rows in row_counts:
        medians = {name: latency[name, rows][0] for name in names}
        results.append(against_best(f"{rows} rows a call", medians["ring"], medians, faster_is_more=False))
    for num_clients in given.clients:
        found = bench_throughput(num_clients, given.rows, seconds, repeats)
        for rows in given.rows:
            rates = {name: rate for (name, number), rate in found.items() if number == rows}
            for name, rate in rates.items():
                results.append(rate.result(f"{name}: {num_clients} clients, {rows} rows a time", "rows/s"))
            results.append(against_best(f"{num_clients} clients, {rows} rows a time", rates["ring"], rates, True))
    missing = [name for name in other_transports.PACKAGES if name not in names]
    return [*results, Result("not installed", ", ".join(missing) or "none")]


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    repeats_flag(sub)
    sub.add_argument(
        "--clients",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16, 32, 64],
        metavar="N",
        help="processes that ask at once (default 1 4 8 16 32 64)",
    )
    sub.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[1, 8, 30, 128, 256],
        metavar="N",
        help="rows of a call (default 1 8 30 128 256)",
    )
    sub.add_argument("--seconds", type=float, help="of each turn (default 0.5; 0.2 with --quick)")
