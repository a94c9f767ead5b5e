"""A model of the user's as a BatchDevice: any torch module, or any function of numpy arrays.

Before a model serves, and before new weights do, it answers rows that the server makes up (`TRIALS`).
Torch is imported only where the model is a module. Read next: server.py.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.errors import ConfigError, ModelFailed
from shmzero.evaluators import Staging
from shmzero.weights_file import in_names_of, read_tensors

Model = Callable[[Any, Any], Any]
Answers = tuple[NDArray[np.float32], NDArray[np.float32]]

TRIALS = ("uniform in 0..1", "zeros and ones", "all zero")
"""States of the server's own rows. A model that takes none of them is not served; all its actions are legal in them."""
PROBE_ROWS = 4
"""How many rows a swap is checked with."""
SAME = 1e-2
"""Answers differ by less, as a share of the largest, where the same weights run in other kernels or in bfloat16."""
EQUAL = 1e-6
"""The same for answers that a swap has left as they were, bit for bit."""
KEPT_ELSEWHERE = (
    "it keeps its weights where a swap does not reach (in a frozen or compiled graph, in values made of them once); "
    "start another server with the new module"
)


class FunctionDevice:
    """Serves `model(states f32 [B, S], masks bool [B, A]) -> (policies [B, A], values [B, V])`, numpy.

    The arrays it is given are the batch's own: valid during the call.
    """

    num_stages = 1

    def __init__(
        self, model: Model, state_dim: int, action_dim: int, value_dim: int, wire: str, max_batch: int
    ) -> None:
        """Raises ConfigError where a first row does not come back in these widths."""
        self.max_batch = max_batch
        self._model = model
        self._widths = (action_dim, value_dim)
        self._stages = [self._new_stage(state_dim, wire) for _ in range(self.num_stages)]
        self._trial = 0
        """The place in TRIALS of the rows that the model takes."""
        self.description = f"{getattr(model, '__name__', type(model).__name__)} on {self._place()}"
        _in_fresh_thread(self._try_out)

    def _place(self) -> str:
        return "cpu"

    def _new_stage(self, state_dim: int, wire: str) -> Any:
        action_dim, value_dim = self._widths
        staging = Staging(
            np.zeros((self.max_batch, state_dim), wire),
            np.zeros((self.max_batch, (action_dim + 63) // 64), np.uint64),
            np.zeros((self.max_batch, action_dim), np.float32),
            np.zeros((self.max_batch, value_dim), np.float32),
        )
        return staging, np.zeros((self.max_batch, action_dim), np.bool_)

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
        shape, kind = [num_rows, self.staging(0).features.shape[1]], TRIALS[self._trial]
        return f"tried with rows of the server's own (states {shape} {kind}, all {self._widths[0]} actions legal):"

    def _advice(self, failure: ModelFailed) -> str:
        return ""

    def _answers(self, model: Model, num_rows: int) -> Answers:
        """What the service would answer with `model` to made-up rows. Nothing may be in flight. Raises ModelFailed."""
        staging = self.staging(0)
        drawn = np.random.default_rng(0).random((num_rows, staging.features.shape[1]), np.float32)
        staging.features[:num_rows] = (drawn, drawn.round(), np.zeros_like(drawn))[self._trial]
        staging.masks[:num_rows] = _core.pack_masks(np.ones((num_rows, self._widths[0]), np.bool_))
        served, self._model = self._model, model
        try:
            self.launch(0, num_rows)
            self.wait(0)
        finally:
            self._model = served
        return staging.policies[:num_rows].copy(), staging.values[:num_rows].copy()

    def staging(self, stage: int) -> Staging:
        staging: Staging = self._stages[stage][0]
        return staging

    def launch(self, stage: int, rows: int) -> None:
        staging, masks = self._stages[stage]
        _core.unpack_masks(staging.masks[:rows], masks[:rows])
        with self._named_failures(rows):
            self._run(self._stages[stage], rows)

    def _run(self, stage: Any, rows: int) -> None:
        staging, masks = stage
        states = np.asarray(staging.features[:rows], np.float32)
        policies, values = self._both(self._model(states, masks[:rows]), rows)
        staging.policies[:rows] = policies
        staging.values[:rows] = values

    def _named_failures(self, rows: int) -> _NamedFailures:
        return _NamedFailures(rows)

    def _both(self, answer: Any, rows: int) -> tuple[Any, Any]:
        """Policies and values out of what the model returned. Raises ValueError, which says what that was."""
        found = policy_and_value(answer)
        action_dim, value_dim = self._widths
        if found is not None:
            policies, values = (self._numbers(part) for part in found)
            if policies is not None and values is not None:
                if tuple(policies.shape) == (rows, action_dim) and tuple(values.shape) == (rows, value_dim):
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

    def finished(self, stage: int) -> bool:
        return True

    def wait(self, stage: int) -> None:
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


class _NamedFailures:
    """Turns whatever a model raises into ModelFailed."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, Exception):
            said = one_line(error).encode(errors="replace").decode()  # goes into UTF-8
            raise ModelFailed(f"{type(error).__name__} in a batch of {self._rows} rows: {said}") from error


def _in_fresh_thread(call: Callable[[], object]) -> None:
    """Run it as the serving thread will: torch's default device, its modes and more are each thread's own."""
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
    if isinstance(answer, Mapping):
        return (answer["policy"], answer["value"]) if "policy" in answer and "value" in answer else None
    if hasattr(answer, "policy") and hasattr(answer, "value"):  # a named tuple, a dataclass
        return answer.policy, answer.value
    return (answer[0], answer[1]) if isinstance(answer, (tuple, list)) and len(answer) >= 2 else None


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


class ModuleDevice(FunctionDevice):
    """Serves a torch module, called with float32 states and bool masks on its device.

    On CUDA two batches are in flight, each on a stream and in pinned memory of its own.
    """

    _allowed = "torch tensors of real numbers"

    def __init__(
        self,
        module: Any,
        state_dim: int,
        action_dim: int,
        value_dim: int,
        wire: str,
        max_batch: int,
        device: str,
        copy: bool = True,
        grad: bool = False,
    ) -> None:
        """`device`: auto, cpu, cuda or cuda:N. Raises ConfigError where there is no such device.

        `copy`: serve a copy, which training the module leaves alone; else the module itself, which is moved to the
        device and put into evaluation mode. `grad`: it may take gradients within a call.
        """
        import torch

        self._torch = torch
        self._grad = grad
        self._device = self._usable(device)
        if copy:
            module = self._copied(module, "; copy=False serves the module itself, not to be trained meanwhile")
        self._on_cuda = self._device.type == "cuda"
        self.num_stages = 2 if self._on_cuda else 1
        super().__init__(self._placed(module), state_dim, action_dim, value_dim, wire, max_batch)

    def _usable(self, device: str) -> Any:
        torch = self._torch
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            found = torch.device(device)
            torch.empty(1, dtype=torch.float32, device=found)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device is {device!r}: {one_line(error)}") from None
        if found.type not in ("cpu", "cuda"):
            raise ConfigError(f"device is {device!r}; allowed: auto, cpu, cuda and cuda:N")
        return found

    def _copied(self, module: Any, advice: str) -> Any:
        try:
            return deepcopy(module)
        except Exception as error:  # whatever the user's module makes of it
            raise ConfigError(
                f"the module cannot be copied: {type(error).__name__}: {one_line(error)}{advice}"
            ) from None

    def _placed(self, module: Any) -> Any:
        try:
            return module.to(self._device).eval()
        except Exception as error:  # likewise
            raise ConfigError(
                f"the module cannot be moved to {self._device}: {type(error).__name__}: {one_line(error)}"
            ) from None

    def _advice(self, failure: ModelFailed) -> str:
        needs_grad = not self._grad and ("grad" in str(failure) or "nference tensor" in str(failure))
        return "; grad=True lets a module take gradients" if needs_grad else ""

    def _place(self) -> str:
        return str(self._device)

    def _new_stage(self, state_dim: int, wire: str) -> Any:
        torch = self._torch
        action_dim, value_dim = self._widths
        host = [
            torch.zeros(self.max_batch, width, dtype=dtype, device="cpu")
            for width, dtype in (
                (state_dim, getattr(torch, wire)), ((action_dim + 63) // 64, torch.int64),
                (action_dim, torch.float32), (value_dim, torch.float32), (action_dim, torch.bool),
            )
        ]  # fmt: skip
        if self._on_cuda:
            host = [tensor.pin_memory() for tensor in host]
        staging = Staging(host[0].numpy(), host[1].numpy().view(np.uint64), host[2].numpy(), host[3].numpy())
        stream = torch.cuda.Stream(self._device) if self._on_cuda else None
        done = torch.cuda.Event() if self._on_cuda else None
        return staging, host[4].numpy(), host, stream, done

    def launch(self, stage: int, rows: int) -> None:
        staging, masks = self._stages[stage][:2]
        _core.unpack_masks(staging.masks[:rows], masks[:rows])
        with self._named_failures(rows), self._torch.enable_grad() if self._grad else self._torch.inference_mode():
            self._run(self._stages[stage], rows)

    def _run(self, stage: Any, rows: int) -> None:
        _, _, (states, _, policies_out, values_out, masks), stream, done = stage
        if stream is None:
            policies, values = self._both(self._model(states[:rows].float(), masks[:rows]), rows)
            policies_out[:rows].copy_(policies)
            values_out[:rows].copy_(values)
            return
        with self._torch.cuda.stream(stream):
            on_device = states[:rows].to(self._device, non_blocking=True).float()
            on_device_masks = masks[:rows].to(self._device, non_blocking=True)
            policies, values = self._both(self._model(on_device, on_device_masks), rows)
            policies_out[:rows].copy_(policies, non_blocking=True)
            values_out[:rows].copy_(values, non_blocking=True)
            done.record(stream)

    def _numbers(self, part: Any) -> Any:
        if not isinstance(part, self._torch.Tensor) or part.is_complex():
            return None
        return part.detach() if self._grad else part

    def finished(self, stage: int) -> bool:
        done = self._stages[stage][4]
        return done is None or bool(done.query())

    def wait(self, stage: int) -> None:
        done = self._stages[stage][4]
        if done is not None:
            with self._named_failures(self.max_batch):
                done.synchronize()

    def swap(self, weights: Any) -> None:
        """Serve other weights: another module of this kind, its state_dict, or the path of a .safetensors file.

        They are copied into the module that is served. Raises ConfigError, and the old weights stay, where it then
        does not answer made-up rows as the new module does by itself; for weights without a module, where they are
        other ones and no answer changes. A module whose answers differ from call to call is not compared.
        """
        alone = None
        if isinstance(weights, self._torch.nn.Module):
            # A copy, as somebody may be training it; not compiled, which would take long.
            alone = self._copied(getattr(weights, "_orig_mod", weights), "; give its state_dict() instead")
            alone = self._placed(alone)
            given: Mapping[str, Any] = alone.state_dict(keep_vars=True)
        else:
            given = weights if isinstance(weights, Mapping) else self._read(weights)
        own = self._model.state_dict()  # type: ignore[attr-defined]
        given = self._fitting(own, given)
        if not own and alone is None:
            raise ConfigError(f"the served module has no weights that can be replaced: {KEPT_ELSEWHERE}")
        Tensor = self._torch.Tensor
        with self._torch.no_grad():
            # All that can go wrong comes before the first of the old is overwritten.
            old = {name: value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)
                   for name, value in own.items()}  # fmt: skip
            fresh = {}
            for name, value in given.items():
                if isinstance(own[name], Tensor):
                    if alone is not None and value.dtype != own[name].dtype:
                        value.data = value.data.to(own[name].dtype)  # to be asked as it will be served
                    value = value.detach().to(own[name].device, own[name].dtype)
                fresh[name] = value
            changed = not all(self._equal(own[name], value) for name, value in fresh.items())
        try:
            before = self._answers(self._model, self._probe_rows)
            self._load(fresh)
            self._check_swapped(before, changed, alone)
        except BaseException as error:
            self._load(old)
            if isinstance(error, ModelFailed):
                raise ConfigError(f"the weights cannot be served: {self._tried(self._probe_rows)} {error}") from error
            raise

    def _check_swapped(self, before: Answers, changed: bool, alone: Any) -> None:
        """Raises ConfigError where the served module does not answer as the new weights do, as far as can be told."""
        found = self._answers(self._model, self._probe_rows)
        if _all_finite(before) and not _all_finite(found):
            raise ConfigError("the new weights answer made-up rows with NaN or infinity, the old ones with numbers")
        untouched = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, found, strict=True))
        if alone is None:
            if untouched and changed:
                raise ConfigError(f"no answer changed with the weights: {KEPT_ELSEWHERE}")
            return
        wanted = self._answers(alone, self._probe_rows)
        if _apart(found, wanted) <= (EQUAL if untouched else SAME):
            return
        if _apart(self._answers(alone, self._probe_rows), wanted) <= SAME:
            raise ConfigError(f"the served module does not answer as the new one does by itself: {KEPT_ELSEWHERE}")

    @property
    def _probe_rows(self) -> int:
        return min(PROBE_ROWS, self.max_batch)

    def _load(self, tensors: Mapping[str, Any]) -> None:
        # In the mode of a call: what the module has made in one cannot be written to in another.
        with self._torch.no_grad() if self._grad else self._torch.inference_mode():
            state = self._model.state_dict()  # type: ignore[attr-defined]
            state.update(tensors)  # and so with what it says about itself: versions of its modules
            self._model.load_state_dict(state)  # type: ignore[attr-defined]
        if self._on_cuda:
            self._torch.cuda.synchronize(self._device)

    def _fitting(self, own: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
        """`given` by the names of `own`. Raises ConfigError where they are another module's."""
        Tensor = self._torch.Tensor
        given = in_names_of(own, given)
        wrong = sorted(own.keys() ^ given.keys())
        for name in own.keys() & given.keys():
            if isinstance(own[name], Tensor) and not isinstance(given[name], Tensor):
                raise ConfigError(f"weights has a {type(given[name]).__name__} for {name}; allowed: torch tensors")
        wrong += [
            name for name in own
            if not wrong and isinstance(own[name], Tensor) and own[name].shape != given[name].shape
        ]  # fmt: skip
        if wrong:
            frozen = "" if own else f"; the served one has none that can be replaced: {KEPT_ELSEWHERE}"
            raise ConfigError(f"these weights are another model's: {', '.join(wrong[:3])} do not fit{frozen}")
        return given

    def _equal(self, old: Any, new: Any) -> bool:
        """Whether two entries of a state_dict hold the same numbers; counters, which no answer needs, aside."""
        if isinstance(old, (tuple, list)):
            return len(old) == len(new) and all(self._equal(a, b) for a, b in zip(old, new, strict=True))
        if not isinstance(old, self._torch.Tensor) or not (old.is_floating_point() or old.is_quantized):
            return True
        return bool(self._torch.equal(old, new))

    def _read(self, weights: Any) -> Mapping[str, Any]:
        if not isinstance(weights, (str, Path)):
            raise ConfigError(f"weights is {weights!r}; allowed: a module, a state_dict, a .safetensors file")
        return read_tensors(weights, "weights")[0]


def _all_finite(answers: Answers) -> bool:
    return all(bool(np.isfinite(part).all()) for part in answers)


def _apart(found: Answers, wanted: Answers) -> float:
    """The largest difference of two answers, as a share of the largest number that is wanted."""
    largest = 0.0
    for a, b in zip(found, wanted, strict=True):
        differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if differ.any():
            with np.errstate(invalid="ignore", over="ignore"):
                gap = np.abs(a - b)[differ].max() / max(np.abs(b[np.isfinite(b)]).max(initial=0.0), 1e-3)
            largest = max(largest, float(np.nan_to_num(gap, nan=np.inf)))
    return largest


def device_of(
    model: Any,
    state_dim: int,
    action_dim: int,
    value_dim: int,
    wire: str,
    max_batch: int,
    device: str,
    copy: bool = True,
    grad: bool = False,
) -> Any:
    """The BatchDevice that serves a model: a torch module, a function of numpy arrays, or itself one.

    `copy` and `grad` are a module's: see ModuleDevice. Raises ConfigError for what cannot be served in these widths
    and on this device.
    """
    if hasattr(model, "launch") and hasattr(model, "staging"):
        _check_device(model, state_dim, action_dim, value_dim, wire)
        return model
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        return ModuleDevice(model, state_dim, action_dim, value_dim, wire, max_batch, device, copy, grad)
    if not callable(model):
        raise ConfigError(f"model is {model!r}; allowed: a torch module, or a function of (states, masks)")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device is {device!r}; a function of numpy arrays runs on the CPU: allowed are auto and cpu")
    return FunctionDevice(model, state_dim, action_dim, value_dim, wire, max_batch)


def _check_device(device: Any, state_dim: int, action_dim: int, value_dim: int, wire: str) -> None:
    """Check that the arrays of a BatchDevice are those of the service. Raises ConfigError."""
    words = (action_dim + 63) // 64
    for stage in range(device.num_stages):
        staging = device.staging(stage)
        for name, width, dtype in (
            ("features", state_dim, wire), ("masks", words, "uint64"),
            ("policies", action_dim, "float32"), ("values", value_dim, "float32"),
        ):  # fmt: skip
            array = getattr(staging, name)
            flat = name == "masks" and words == 1 and array.shape == (device.max_batch,)
            if array.dtype != dtype or not (flat or array.shape == (device.max_batch, width)):
                raise ConfigError(
                    f"the device's {name} are {array.dtype} {list(array.shape)}; "
                    f"the service's widths and wire make that {dtype} {[device.max_batch, width]}"
                )
            if not array.flags.c_contiguous:
                raise ConfigError(f"the device's {name} are not contiguous")
