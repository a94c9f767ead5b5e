"""A model of the user's as a BatchDevice: any torch module, or any function of numpy arrays.

Before a model serves, and before new weights do, it answers rows that the server makes up (`TRIALS`).
Torch is imported only where the model is a module. Read next: service/server.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.errors import ConfigError, ModelFailed
from shmzero.inference.device import Staging
from shmzero.shm.sizes import Widths

Model = Callable[[Any, Any], Any]
Answers = tuple[NDArray[np.float32], NDArray[np.float32]]

TRIALS = ("uniform in 0..1", "zeros and ones", "all zero")
"""States of the server's own rows. A model that takes none of them is not served; all its actions are legal in them."""
PROBE_ROWS = 4
"""How many rows a swap is checked with."""


@dataclass(frozen=True)
class Buffer:
    """A batch of a user's model."""

    staging: Staging
    masks: NDArray[np.bool_]
    """[B, A] legal actions, out of the words of `staging`."""


class FunctionDevice:
    """Serves `model(states f32 [B, S], masks bool [B, A]) -> (policies [B, A], values [B, V])`, numpy.

    The arrays it is given are the batch's own: valid during the call.
    """

    num_buffers = 1

    def __init__(self, model: Model, widths: Widths, max_batch: int) -> None:
        """Raises ConfigError where a first row does not come back in these widths."""
        self.max_batch = max_batch
        self._model = model
        self._widths = widths
        self._buffers: Sequence[Buffer] = [self._new_buffer() for _ in range(self.num_buffers)]
        self._trial = 0
        """The place in TRIALS of the rows that the model takes."""
        self.description = f"{getattr(model, '__name__', type(model).__name__)} on {self._place()}"
        _in_fresh_thread(self._try_out)

    def _place(self) -> str:
        return "cpu"

    def _new_buffer(self) -> Buffer:
        widths = self._widths
        staging = Staging(
            np.zeros((self.max_batch, widths.state_dim), widths.wire),
            np.zeros((self.max_batch, widths.mask_words), np.uint64),
            np.zeros((self.max_batch, widths.action_dim), np.float32),
            np.zeros((self.max_batch, widths.value_dim), np.float32),
        )
        return Buffer(staging, np.zeros((self.max_batch, widths.action_dim), np.bool_))

    def _try_out(self) -> None:
        """Find made-up rows that the model takes and answers in the service's widths. Raises ConfigError."""
        failures = []
        for self._trial in range(len(TRIALS)):
            try:
                self._answers(self._model, 1)
                return
            except ModelFailed as error:
                failures.append(error)
        self._trial = 0
        raise ConfigError(f"the model cannot be served: {self._tried(1)} {failures[0]}{self._advice(failures[0])}")

    def _tried(self, num_rows: int) -> str:
        """The beginning of a message: it names the rows that were tried. The message goes on with what came of it."""
        shape, kind = [num_rows, self._widths.state_dim], TRIALS[self._trial]
        return (
            f"tried with rows of the server's own (states {shape} {kind}, all {self._widths.action_dim} actions legal):"
        )

    def _advice(self, failure: ModelFailed) -> str:
        return ""

    def _answers(self, model: Model, num_rows: int) -> Answers:
        """What the service would answer with `model` to made-up rows. Nothing may be in flight. Raises ModelFailed."""
        staging = self.staging(0)
        drawn = np.random.default_rng(0).random((num_rows, self._widths.state_dim), np.float32)
        staging.features[:num_rows] = (drawn, drawn.round(), np.zeros_like(drawn))[self._trial]
        staging.masks[:num_rows] = _core.pack_masks(np.ones((num_rows, self._widths.action_dim), np.bool_))
        served, self._model = self._model, model
        try:
            self.launch(0, num_rows)
            self.wait(0)
        finally:
            self._model = served
        return staging.policies[:num_rows].copy(), staging.values[:num_rows].copy()

    def staging(self, buffer: int) -> Staging:
        return self._buffers[buffer].staging

    def launch(self, buffer: int, rows: int) -> None:
        batch = self._buffers[buffer]
        _core.unpack_masks(batch.staging.masks[:rows], batch.masks[:rows])
        try:
            self._run(batch, rows)
        except Exception as error:  # whatever the model raises
            raise model_failed(error, rows) from error

    def _run(self, buffer: Buffer, rows: int) -> None:
        """Call the model with the first rows, and have what it returns copied into the buffer."""
        staging = buffer.staging
        states = np.asarray(staging.features[:rows], np.float32)
        policies, values = self._both(self._model(states, buffer.masks[:rows]), rows)
        staging.policies[:rows] = policies
        staging.values[:rows] = values

    def _both(self, answer: Any, rows: int) -> tuple[Any, Any]:
        """Policies and values out of what the model returned. Raises ValueError, which says what that was."""
        found = policy_and_value(answer)
        _, action_dim, value_dim, _ = self._widths
        if found is not None:
            policies, values = map(self._numbers, found)
            if policies is not None and values is not None:
                if policies.shape == (rows, action_dim) and values.shape == (rows, value_dim):
                    return policies, values
                raise ValueError(
                    f"it returned policies {list(policies.shape)} and values {list(values.shape)}; "
                    f"the service's widths make that {[rows, action_dim]} and {[rows, value_dim]} "
                    f"(it was {described(answer)})"
                )
        raise ValueError(
            f"it returned {described(answer)}; allowed: policies {[rows, action_dim]} and values {[rows, value_dim]}, "
            f"{self._allowed}, as a tuple, a list, or a dict with policy and value"
        )

    _allowed = "arrays of real numbers"

    def _numbers(self, part: Any) -> Any:
        """An array of real numbers; None for anything else."""
        array = np.asarray(part)
        return array if array.dtype.kind in "fiub" else None

    def finished(self, buffer: int) -> bool:
        return True

    def wait(self, buffer: int) -> None:
        pass

    def swap(self, weights: Any) -> None:
        if not callable(weights):
            raise ConfigError(f"weights is {weights!r}; a function is replaced by a function")
        old, self._model = (self._model, self._trial), weights
        try:
            self._try_out()
        except BaseException:
            self._model, self._trial = old
            raise

    def poll(self) -> str | None:
        return None


def model_failed(error: Exception, rows: int) -> ModelFailed:
    """The error of a batch of so many rows, out of what the model raised."""
    message = one_line(error).encode(errors="replace").decode()  # goes into UTF-8
    return ModelFailed(f"{type(error).__name__} in a batch of {rows} rows: {message}")


def _in_fresh_thread(call: Callable[[], object]) -> None:
    """Call it as the serving thread will: torch's default device, its modes and more are each thread's own."""
    outcome: Future[object] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # the entry point of a thread; the caller gets it
            outcome.set_exception(error)

    threading.Thread(target=run, name="shmzero-trial", daemon=True).start()
    outcome.result()


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def policy_and_value(answer: Any) -> tuple[Any, Any] | None:
    """The two parts of what a model returned: by name where they have names, else the first two. None: neither."""
    if hasattr(answer, "policy") and hasattr(answer, "value"):  # a named tuple, a dataclass
        return answer.policy, answer.value
    if isinstance(answer, (tuple, list)):
        return (answer[0], answer[1]) if len(answer) >= 2 else None
    if isinstance(answer, Mapping) and "policy" in answer and "value" in answer:
        return answer["policy"], answer["value"]
    return None


def described(answer: Any) -> str:
    """Types, shapes and dtypes of what a model returned, on one line."""
    name = type(answer).__name__
    if hasattr(answer, "shape") and hasattr(answer, "dtype"):
        return f"{name} {str(answer.dtype).removeprefix('torch.')} {list(answer.shape)}"
    if isinstance(answer, Mapping):
        parts = [f"{key}: {described(part)}" for key, part in answer.items()]
    elif isinstance(answer, (tuple, list)) and len(answer) <= 8:
        parts = [described(part) for part in answer]
    elif isinstance(answer, (tuple, list)):
        return f"{name} of {len(answer)}"
    else:
        return name
    return f"{name} ({', '.join(parts)})"
