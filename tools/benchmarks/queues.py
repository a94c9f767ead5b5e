"""What the ring replaces, to be measured beside it: queue and pipe servers, and a network in each process.

`queue`: multiprocessing.Queue, numpy arrays pickled through a pipe by a feeder thread. `manager`: queues of
a multiprocessing.Manager, every put and get a call to a third process. `pipe`: a multiprocessing.Pipe a
client, no feeder threads. All batch what is waiting. With `per_row`, rows go as messages of their own, as in
the plan that this project started from. `direct`: no server at all, each process calls the model itself.
"""

from __future__ import annotations

import itertools
import multiprocessing
import queue
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

Model = Callable[[NDArray[np.float32], NDArray[np.bool_]], tuple[NDArray[np.float32], NDArray[np.float32]]]

LOST_S = 120.0
"""How long a client waits for an answer."""


class QueueService:
    """One request queue, one answer queue a client; the server is a process of its own."""

    def __init__(self, make_model: Callable[[], Model], num_clients: int, kind: str, max_batch: int = 1024) -> None:
        """kind: queue or manager. `make_model` is called in the server; a module's function, for spawn."""
        context = multiprocessing.get_context("spawn")
        self._manager = context.Manager() if kind == "manager" else None
        new_queue: Callable[[], Any] = self._manager.Queue if self._manager else context.Queue
        self._requests = new_queue()
        self._answers = [new_queue() for _ in range(num_clients)]
        self._server = context.Process(
            target=_serve_queues, args=(make_model, self._requests, self._answers, max_batch), daemon=True
        )
        self._server.start()

    def client(self, index: int, per_row: bool = False) -> QueueClient:
        """Client `index`; goes to its process as an argument of multiprocessing.Process."""
        return QueueClient(index, self._requests, self._answers[index], per_row)

    def close(self) -> None:
        self._requests.put(None)
        self._server.join(timeout=10.0)
        self._server.kill()  # it cannot leave where a client died with a queue's lock
        if self._manager:
            self._manager.shutdown()
        else:
            self._requests.cancel_join_thread()


class QueueClient:
    """`evaluate` and `evaluate_many` over a QueueService."""

    def __init__(self, index: int, requests: Any, answers: Any, per_row: bool) -> None:
        self._index = index
        self._requests = requests
        self._answers = answers
        self._per_row = per_row
        self._ids = itertools.count()

    def evaluate(self, state: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[Any, Any]:
        policies, values = self._ask([(state[None], mask[None])])
        return policies[0], values[0]

    def evaluate_many(self, states: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[Any, Any]:
        if self._per_row:
            return self._ask([(states[i : i + 1], masks[i : i + 1]) for i in range(len(states))])
        return self._ask([(states, masks)])

    def _ask(self, messages: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        order = []
        for states, masks in messages:
            order.append(next(self._ids))
            self._requests.put((self._index, order[-1], states, masks))
        found: dict[int, tuple[Any, Any]] = {}
        while len(found) < len(messages):
            number, policies, values = self._answers.get(timeout=LOST_S)
            found[number] = policies, values
        return tuple(np.concatenate([found[number][part] for number in order]) for part in (0, 1))  # type: ignore[return-value]


def _serve_queues(make_model: Callable[[], Model], requests: Any, answers: list[Any], max_batch: int) -> None:
    model = make_model()
    while True:
        batch = [requests.get()]
        rows = len(batch[0][2]) if batch[0] else 0
        try:
            while batch[-1] is not None and rows < max_batch:
                batch.append(requests.get_nowait())
                rows += len(batch[-1][2]) if batch[-1] else 0
        except queue.Empty:
            pass
        leaving = batch[-1] is None
        batch = batch[:-1] if leaving else batch
        if batch:
            policies, values = model(
                np.concatenate([message[2] for message in batch]), np.concatenate([message[3] for message in batch])
            )
            at = 0
            for client, number, states, _ in batch:
                end = at + len(states)
                answers[client].put((number, policies[at:end], values[at:end]))
                at = end
        if leaving:
            return


class PipeService:
    """A duplex pipe a client; the server is a process of its own."""

    def __init__(self, make_model: Callable[[], Model], num_clients: int) -> None:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(num_clients)]
        self._ends = [pair[0] for pair in pairs]
        theirs = [pair[1] for pair in pairs]
        self._server = context.Process(target=_serve_pipes, args=(make_model, theirs), daemon=True)
        self._server.start()
        for end in theirs:
            end.close()

    def client(self, index: int) -> PipeClient:
        """Client `index`; goes to its process as an argument of multiprocessing.Process."""
        return PipeClient(self._ends[index])

    def close(self) -> None:
        for end in self._ends:
            end.close()
        self._server.join()


class PipeClient:
    """`evaluate` and `evaluate_many` over a PipeService."""

    def __init__(self, end: Connection) -> None:
        self._end = end

    def evaluate(self, state: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[Any, Any]:
        policies, values = self.evaluate_many(state[None], mask[None])
        return policies[0], values[0]

    def evaluate_many(self, states: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[Any, Any]:
        self._end.send((states, masks))
        answer: tuple[Any, Any] = self._end.recv()
        return answer


def _serve_pipes(make_model: Callable[[], Model], ends: list[Connection]) -> None:
    model = make_model()
    while ends:
        batch = []
        for end in wait(ends):
            assert isinstance(end, Connection)
            try:
                batch.append((end, *end.recv()))
            except EOFError:
                ends.remove(end)
        if not batch:
            continue
        policies, values = model(*(np.concatenate([message[part] for message in batch]) for part in (1, 2)))
        at = 0
        for end, states, _ in batch:
            end.send((policies[at : at + len(states)], values[at : at + len(states)]))
            at += len(states)


class DirectEvaluator:
    """The model in the calling process: no transport, and no batch beyond one's own rows."""

    def __init__(self, make_model: Callable[[], Model]) -> None:
        self._model = make_model()

    def evaluate(self, state: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[Any, Any]:
        policies, values = self._model(state[None], mask[None])
        return policies[0], values[0]

    def evaluate_many(self, states: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[Any, Any]:
        return self._model(states, masks)
