"""Other people's transports, each used as well as its documentation knows how, to be measured beside the ring.

`faster-fifo`: byte queues in shared memory, many messages taken at once. `pyzmq`: DEALER and ROUTER sockets
over ipc, arrays as frames of their own, nothing pickled. `torchrl`: its fixed slots in shared memory, one
server for each number of rows, which a slot is made for. All optional; a missing one is left out.
Read next: transport.py.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.benchmarks.queues import LOST_S, Model

PACKAGES = {"faster-fifo": "faster_fifo", "pyzmq": "zmq", "torchrl": "torchrl"}
"""What to install, and the module's name, of each transport here."""
QUEUE_BYTES = 1 << 24


def installed() -> list[str]:
    """Names of PACKAGES that can be imported."""
    return [name for name, module in PACKAGES.items() if importlib.util.find_spec(module)]


def _answer(model: Model, parts: list[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
    """(policies, values) of each part, out of one batch."""
    policies, values = model(*(np.concatenate([part[i] for part in parts]) for i in (0, 1)))
    at = 0
    for states, _ in parts:
        yield policies[at : at + len(states)], values[at : at + len(states)]
        at += len(states)


class _Client:
    def evaluate(self, state: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[Any, Any]:
        policies, values = self.evaluate_many(state[None], mask[None])
        return policies[0], values[0]

    def evaluate_many(self, states: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[Any, Any]:
        raise NotImplementedError


# --- faster-fifo ------------------------------------------------------------------------------------


class FifoService:
    """One queue to the server, one back to each client."""

    def __init__(self, make_model: Callable[[], Model], num_clients: int) -> None:
        import faster_fifo
        import faster_fifo_reduction  # noqa: F401  lets queues travel to a spawned process

        context = multiprocessing.get_context("spawn")
        self._requests = faster_fifo.Queue(max_size_bytes=QUEUE_BYTES)
        self._answers = [faster_fifo.Queue(max_size_bytes=QUEUE_BYTES) for _ in range(num_clients)]
        self._server = context.Process(
            target=_serve_fifo, args=(make_model, self._requests, self._answers), daemon=True
        )
        self._server.start()

    def client(self, index: int) -> FifoClient:
        return FifoClient(index, self._requests, self._answers[index])

    def close(self) -> None:
        self._requests.put(None)
        self._server.join()


class FifoClient(_Client):
    """Goes to its process as an argument of multiprocessing.Process."""

    def __init__(self, index: int, requests: Any, answers: Any) -> None:
        self._index, self._requests, self._answers = index, requests, answers

    def evaluate_many(self, states: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[Any, Any]:
        self._requests.put((self._index, states, masks), timeout=LOST_S)
        answer: tuple[Any, Any] = self._answers.get(timeout=LOST_S)
        return answer


def _serve_fifo(make_model: Callable[[], Model], requests: Any, answers: list[Any]) -> None:
    import faster_fifo_reduction  # noqa: F401

    model = make_model()
    while True:
        try:
            batch = requests.get_many(timeout=1.0)
        except Exception as error:
            if type(error).__name__ != "Empty":
                raise
            continue
        leaving = None in batch
        batch = [message for message in batch if message is not None]
        if batch:
            for (client, *_), answer in zip(batch, _answer(model, [m[1:] for m in batch]), strict=True):
                answers[client].put(answer)
        if leaving:
            return


# --- pyzmq ------------------------------------------------------------------------------------------


class ZmqService:
    """A ROUTER in a process of its own."""

    def __init__(self, make_model: Callable[[], Model], num_clients: int) -> None:
        self._address = f"ipc://{Path(tempfile.gettempdir()) / f'shmzero-bench-{secrets.token_hex(4)}'}"
        context = multiprocessing.get_context("spawn")
        self._server = context.Process(target=_serve_zmq, args=(make_model, self._address), daemon=True)
        self._server.start()

    def client(self, index: int) -> ZmqClient:
        return ZmqClient(self._address)

    def close(self) -> None:
        ZmqClient(self._address).send_frames([b""])
        self._server.join()
        Path(self._address.removeprefix("ipc://")).unlink(missing_ok=True)


class ZmqClient(_Client):
    """Connects where it is used."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._socket: Any = None

    def send_frames(self, frames: list[Any]) -> None:
        import zmq

        if self._socket is None:
            self._socket = zmq.Context.instance().socket(zmq.DEALER)
            self._socket.connect(self._address)
        self._socket.send_multipart(frames, copy=len(frames[0]) < 1 << 16)

    def evaluate_many(self, states: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[Any, Any]:
        self.send_frames([states.data.cast("B"), masks.data.cast("B")])
        policies, values = self._socket.recv_multipart(copy=len(states) < 16)
        shape = (len(states), -1)
        return np.frombuffer(policies, np.float32).reshape(shape), np.frombuffer(values, np.float32).reshape(shape)


def _serve_zmq(make_model: Callable[[], Model], address: str) -> None:
    import zmq

    from tools.benchmarks.workload import ACTION_DIM, STATE_DIM

    model = make_model()
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.bind(address)
    while True:
        messages = [socket.recv_multipart()]
        try:
            while len(messages) < 64:
                messages.append(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            pass
        work = [m for m in messages if len(m) == 3]
        parts = [
            (np.frombuffer(states, np.float32).reshape(-1, STATE_DIM),
             np.frombuffer(masks, np.bool_).reshape(-1, ACTION_DIM))
            for _, states, masks in work
        ]  # fmt: skip
        if parts:
            for message, (policies, values) in zip(work, _answer(model, parts), strict=True):
                frames = [np.ascontiguousarray(part).data.cast("B") for part in (policies, values)]
                socket.send_multipart([message[0], *frames])
        if len(work) < len(messages):
            return


# --- torchrl ----------------------------------------------------------------------------------------


class TorchrlService:
    """ProcessInferenceServer over ProcessSlotTransport, one a number of rows."""

    def __init__(self, make_model: Callable[[], Model], num_clients: int, row_counts: Iterable[int]) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.modules.inference_server import ProcessInferenceServer, ProcessSlotTransport

        from tools.benchmarks.workload import ACTION_DIM, STATE_DIM, VALUE_DIM

        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._transports, self._servers = {}, []
        for rows in row_counts:
            request = TensorDict({"states": torch.zeros(rows, STATE_DIM),
                                  "masks": torch.zeros(rows, ACTION_DIM, dtype=torch.bool)})  # fmt: skip
            answer = TensorDict({"policies": torch.zeros(rows, ACTION_DIM), "values": torch.zeros(rows, VALUE_DIM)})
            transport = ProcessSlotTransport(request, answer, num_slots=num_clients, copy_result=False)
            server = ProcessInferenceServer(
                policy_factory=_TorchrlModel(make_model),
                transport=transport,
                max_batch_size=max(1, num_clients),
                policy_version_key=None,
            )
            server.start()
            self._transports[rows] = transport
            self._servers.append(server)

    def client(self, index: int) -> TorchrlClient:
        return TorchrlClient({rows: transport.client() for rows, transport in self._transports.items()})

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()


class _TorchrlModel:
    """Makes the policy in the server's process."""

    def __init__(self, make_model: Callable[[], Model]) -> None:
        self._make_model = make_model

    def __call__(self) -> Any:
        import torch
        from tensordict.nn import TensorDictModule

        torch.set_num_threads(1)
        model = self._make_model()

        class Wrapped(torch.nn.Module):
            def forward(self, states: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                rows = states.shape[:-1]
                found = model(states.flatten(0, -2).numpy(), masks.flatten(0, -2).numpy())
                policies, values = (torch.from_numpy(part).reshape(*rows, -1) for part in found)
                return policies, values

        return TensorDictModule(Wrapped(), in_keys=["states", "masks"], out_keys=["policies", "values"])


class TorchrlClient(_Client):
    """Goes to its process as an argument of multiprocessing.Process."""

    def __init__(self, clients: dict[int, Any]) -> None:
        self._clients = clients

    def evaluate_many(self, states: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[Any, Any]:
        import torch
        from tensordict import TensorDict

        request = TensorDict({"states": torch.from_numpy(states), "masks": torch.from_numpy(masks)})
        answer = self._clients[len(states)](request, timeout=LOST_S)
        return answer["policies"].numpy(), answer["values"].numpy()
