"""Self-play the way this project's first plan had it, to be measured beside the engine in one run.

Worker processes that play one round at a time and wait for every evaluation: through queues to a server
with an eager float32 network, or with such a network each. Search and rules are the engine's own. All are
started once and idle between stretches. Run by bench.py, within `selfplay`.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from shmzero import SearchConfig, play_rounds
from shmzero.errors import WorkerDied
from shmzero.nets.config import NetName
from tools.benchmarks.measure import ignoring_interrupts
from tools.benchmarks.queues import DirectEvaluator, Model, QueueService
from tools.benchmarks.workload import make_net

WAYS = {
    "manager": "Manager queues, a message a row",
    "queue": "multiprocessing.Queue, a message a step",
    "direct": "a network in each process",
}
START_S = 300.0
"""For all processes to load what they need; and for what a stretch may last beyond its time."""


class _TimeUp(Exception):
    pass


class _Counting:
    """Passes rows on, and counts those that were answered in time."""

    def __init__(self, evaluate_many: Callable[[Any, Any], Any], seconds: float) -> None:
        self._evaluate_many = evaluate_many
        self._seconds = seconds
        self._start = time.perf_counter()
        self.rows = 0
        self.counted_s = 0.0

    def evaluate_many(self, states: Any, masks: Any) -> Any:
        answer = self._evaluate_many(states, masks)
        spent = time.perf_counter() - self._start
        if spent <= self._seconds or not self.rows:
            self.rows, self.counted_s = self.rows + len(states), spent
        if spent >= self._seconds:
            raise _TimeUp
        return answer


def _play(
    client: Any,
    make_model: Callable[[], Model],
    searches: Sequence[SearchConfig],
    first_seed: int,
    order: Any,
    barrier: Any,
    rates: Any,
) -> None:
    evaluate_many = client.evaluate_many if client else DirectEvaluator(make_model).evaluate_many
    seeds = itertools.count(first_seed)

    def stretch(search: SearchConfig, seconds: float) -> float:
        counting = _Counting(evaluate_many, seconds)
        try:
            while True:
                play_rounds(counting, 1, search, seed=next(seeds), lanes=1)
        except _TimeUp:
            return counting.rows / counting.counted_s

    stretch(searches[0], 0.0)  # loads and warms what is behind it
    rates.put(0.0)
    while True:
        barrier.wait()
        which, seconds = int(order[0]), order[1]
        if seconds < 0:
            return
        rates.put(stretch(searches[which], seconds))


class Before:
    """The processes of one of WAYS, idle between `measure` calls. Use as a context manager."""

    def __init__(self, way: str, searches: Sequence[SearchConfig], num_workers: int, net: NetName, device: str) -> None:
        """Starts them and waits until all are warm."""
        context = multiprocessing.get_context("spawn")
        make_model = partial(make_net, net, device)
        self._way = way
        self._order = context.Array("d", 2, lock=False)
        self._barrier, self._rates = context.Barrier(num_workers + 1), context.Queue()
        with ignoring_interrupts():
            self._service = QueueService(make_model, num_workers, way) if way != "direct" else None
            self._programs = [
                context.Process(
                    target=_play,
                    daemon=True,
                    args=(
                        self._service and self._service.client(i, way == "manager"),
                        make_model,
                        searches,
                        i << 20,
                        self._order,
                        self._barrier,
                        self._rates,
                    ),
                )
                for i in range(num_workers)
            ]
            for program in self._programs:
                program.start()
        self._idle = False
        try:
            self._gather(START_S)
        except BaseException:
            self.close()
            raise

    def _gather(self, timeout_s: float) -> float:
        until = time.monotonic() + timeout_s
        total, missing = 0.0, len(self._programs)
        while missing:
            while self._rates.empty():
                dead = [program for program in self._programs if program.exitcode is not None]
                if dead or time.monotonic() > until:
                    what = f"ended with status {dead[0].exitcode}" if dead else f"gave no answer for {timeout_s:g} s"
                    raise WorkerDied(f"a process of the baseline {self._way!r} {what}")
                time.sleep(0.01)
            total += self._rates.get()
            missing -= 1
        self._idle = True
        return total

    def measure(self, which: int, seconds: float) -> float:
        """Evaluations/s of all processes together, with search number `which`."""
        self._tell(which, seconds)
        return self._gather(seconds + START_S)

    def _tell(self, which: int, seconds: float) -> None:
        self._idle = False
        self._order[:] = [which, seconds]
        self._barrier.wait()

    def close(self) -> None:
        leaving = self._idle
        if leaving:
            self._tell(0, -1.0)
        for program in self._programs:
            program.join(timeout=5.0 if leaving else 0.0)
            program.kill()
            program.join()
        if self._service:
            self._service.close()

    def __enter__(self) -> Before:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
