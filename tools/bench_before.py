"""Self-play the way this project's first plan had it, to be measured beside the engine in one run.

Worker processes that play one round at a time and wait for every evaluation: through queues to a server
with an eager float32 network, or with such a network each. Search and rules are the engine's own. Run by
bench.py, within `selfplay`.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

from shmzero import SearchConfig, play_rounds
from tools.baselines import DirectEvaluator, QueueService
from tools.bench_clients import make_plan

WAYS = {
    "manager": "Manager queues, a message a row",
    "queue": "multiprocessing.Queue, a message a step",
    "direct": "a network in each process",
}


class _TimeUp(Exception):
    pass


class _Counting:
    """Counts rows and milliseconds from the first answer on, until its time is up."""

    def __init__(self, evaluate_many: Callable[[Any, Any], Any], seconds: float) -> None:
        self._evaluate_many = evaluate_many
        self._seconds = seconds
        self._start: float | None = None
        self.rows = 0

    def evaluate_many(self, states: Any, masks: Any) -> Any:
        answer = self._evaluate_many(states, masks)
        now = time.monotonic()
        if self._start is None:
            self._start = now  # the first one also loads and warms what is behind it
        else:
            self.rows += len(states)
        if now - self._start > self._seconds:
            raise _TimeUp
        return answer


def _play(client: Any, search: SearchConfig, first_seed: int, seconds: float, barrier: Any, counts: Any) -> None:
    evaluate_many = client.evaluate_many if client else DirectEvaluator(make_plan).evaluate_many
    barrier.wait()
    counting = _Counting(evaluate_many, seconds)
    try:
        for seed in itertools.count(first_seed):
            play_rounds(counting, 1, search, seed=seed, lanes=1)
    except _TimeUp:
        counts.put(counting.rows)


def rows_per_s(way: str, search: SearchConfig, num_workers: int, seconds: float) -> float:
    """Evaluations/s of `num_workers` processes of one of WAYS, over `seconds`."""
    context = multiprocessing.get_context("spawn")
    per_row = way == "manager"
    service = QueueService(make_plan, num_workers, way) if way != "direct" else None
    try:
        barrier, counts = context.Barrier(num_workers), context.Queue()
        programs = [
            context.Process(
                target=_play, daemon=True,
                args=(service and service.client(i, per_row), search, i << 20, seconds, barrier, counts),
            )
            for i in range(num_workers)
        ]
        for program in programs:
            program.start()
        rows = sum(counts.get(timeout=seconds + 120) for _ in programs)
        for program in programs:
            program.join()
        return float(rows / seconds)
    finally:
        if service:
            service.close()
