"""A model of the user's as a BatchDevice: any torch module, or any function of numpy arrays.

Torch is imported only where the model is a module. Read next: server.py.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shmzero import _core
from shmzero.errors import ConfigError, ModelFailed
from shmzero.evaluators import Staging

Model = Callable[[Any, Any], tuple[Any, Any]]


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
        self.description = f"{getattr(model, '__name__', type(model).__name__)} on {self._place()}"
        self._try_out()

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
        try:
            self.launch(0, 1)
            self.wait(0)
        except ModelFailed as error:
            raise ConfigError(f"the model cannot be served: {error}") from None

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
        policies, values = self._model(np.asarray(staging.features[:rows], np.float32), masks[:rows])
        self._check(policies, values, rows)
        staging.policies[:rows] = policies
        staging.values[:rows] = values

    def _named_failures(self, rows: int) -> _NamedFailures:
        return _NamedFailures(rows)

    def _check(self, policies: Any, values: Any, rows: int) -> None:
        action_dim, value_dim = self._widths
        if tuple(policies.shape) != (rows, action_dim) or tuple(values.shape) != (rows, value_dim):
            raise ValueError(
                f"it returned policies {list(policies.shape)} and values {list(values.shape)}; "
                f"the service's widths make that {[rows, action_dim]} and {[rows, value_dim]}"
            )

    def finished(self, stage: int) -> bool:
        return True

    def wait(self, stage: int) -> None:
        pass

    def swap(self, weights: Any) -> None:
        if not callable(weights):
            raise ConfigError(f"weights is {weights!r}; a function is replaced by a function")
        old, self._model = self._model, weights
        try:
            self._try_out()
        except BaseException:
            self._model = old
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
            said = " ".join(str(error).split()).encode(errors="replace").decode()  # goes into UTF-8
            raise ModelFailed(f"{type(error).__name__} in a batch of {self._rows} rows: {said}") from error


class ModuleDevice(FunctionDevice):
    """Serves a copy of a torch module, called with float32 states and bool masks on its device.

    On CUDA two batches are in flight, each on a stream and in pinned memory of its own.
    """

    def __init__(
        self,
        module: Any,
        state_dim: int,
        action_dim: int,
        value_dim: int,
        wire: str,
        max_batch: int,
        device: str,
    ) -> None:
        """`device`: auto, cpu, cuda or cuda:N. Raises ConfigError where there is no such device."""
        import torch

        self._torch = torch
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._device = torch.device(device)
            # A copy: who trains the original meanwhile does not change what is being served.
            module = copy.deepcopy(module).to(self._device).eval()
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device is {device!r}: {' '.join(str(error).split())}") from None
        self._on_cuda = self._device.type == "cuda"
        self.num_stages = 2 if self._on_cuda else 1
        super().__init__(module, state_dim, action_dim, value_dim, wire, max_batch)

    def _place(self) -> str:
        return str(self._device)

    def _new_stage(self, state_dim: int, wire: str) -> Any:
        torch = self._torch
        action_dim, value_dim = self._widths
        host = [
            torch.zeros(self.max_batch, state_dim, dtype=getattr(torch, wire)),
            torch.zeros(self.max_batch, (action_dim + 63) // 64, dtype=torch.int64),
            torch.zeros(self.max_batch, action_dim),
            torch.zeros(self.max_batch, value_dim),
            torch.zeros(self.max_batch, action_dim, dtype=torch.bool),
        ]
        if self._on_cuda:
            host = [tensor.pin_memory() for tensor in host]
        staging = Staging(host[0].numpy(), host[1].numpy().view(np.uint64), host[2].numpy(), host[3].numpy())
        stream = torch.cuda.Stream(self._device) if self._on_cuda else None
        done = torch.cuda.Event() if self._on_cuda else None
        return staging, host[4].numpy(), host, stream, done

    def launch(self, stage: int, rows: int) -> None:
        staging, masks = self._stages[stage][:2]
        _core.unpack_masks(staging.masks[:rows], masks[:rows])
        with self._named_failures(rows), self._torch.inference_mode():
            self._run(self._stages[stage], rows)

    def _run(self, stage: Any, rows: int) -> None:
        _, _, (states, _, policies_out, values_out, masks), stream, done = stage
        if stream is None:
            policies, values = self._model(states[:rows].float(), masks[:rows])
            self._check(policies, values, rows)
            policies_out[:rows].copy_(policies)
            values_out[:rows].copy_(values)
            return
        with self._torch.cuda.stream(stream):
            on_device = states[:rows].to(self._device, non_blocking=True).float()
            policies, values = self._model(on_device, masks[:rows].to(self._device, non_blocking=True))
            self._check(policies, values, rows)
            policies_out[:rows].copy_(policies, non_blocking=True)
            values_out[:rows].copy_(values, non_blocking=True)
            done.record(stream)

    def finished(self, stage: int) -> bool:
        done = self._stages[stage][4]
        return done is None or bool(done.query())

    def wait(self, stage: int) -> None:
        done = self._stages[stage][4]
        if done is not None:
            with self._named_failures(self.max_batch):
                done.synchronize()

    def swap(self, weights: Any) -> None:
        """Weights: another module of this kind, its state_dict, or the path of a .safetensors file."""
        tensors = self._tensors(weights)
        own = self._model.state_dict()  # type: ignore[attr-defined]
        wrong = sorted(own.keys() ^ tensors.keys())
        for name in own.keys() & tensors.keys():
            if not isinstance(tensors[name], self._torch.Tensor):
                raise ConfigError(f"weights has a {type(tensors[name]).__name__} for {name}; allowed: torch tensors")
        wrong += [name for name in own if not wrong and own[name].shape != tensors[name].shape]
        if wrong:
            raise ConfigError(f"these weights are another model's: {', '.join(wrong[:3])} do not fit")
        with self._torch.no_grad():
            # All that can go wrong comes before the first of the old is overwritten.
            fresh = {name: tensors[name].to(tensor.device, tensor.dtype) for name, tensor in own.items()}
            for name, tensor in own.items():
                tensor.copy_(fresh[name])
        if self._on_cuda:
            self._torch.cuda.synchronize(self._device)

    def _tensors(self, weights: Any) -> Mapping[str, Any]:
        if isinstance(weights, self._torch.nn.Module):
            return weights.state_dict()
        if isinstance(weights, Mapping):
            return weights
        if not isinstance(weights, (str, Path)):
            raise ConfigError(f"weights is {weights!r}; allowed: a module, a state_dict, a .safetensors file")
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(str(weights))
        except (OSError, safetensors.SafetensorError) as error:
            raise ConfigError(f"weights {weights} cannot be read: {error}") from None


def device_of(
    model: Any, state_dim: int, action_dim: int, value_dim: int, wire: str, max_batch: int, device: str
) -> Any:
    """The BatchDevice that serves a model: a torch module, a function of numpy arrays, or itself one.

    Raises ConfigError for what cannot be served in these widths and on this device.
    """
    if hasattr(model, "launch") and hasattr(model, "staging"):
        _check_device(model, state_dim, action_dim, value_dim, wire)
        return model
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        return ModuleDevice(model, state_dim, action_dim, value_dim, wire, max_batch, device)
    if not callable(model):
        raise ConfigError(f"model is {model!r}; allowed: a torch module, or a function of (states, masks)")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device is {device!r}; a function of numpy arrays runs on the CPU: allowed are auto and cpu")
    return FunctionDevice(model, state_dim, action_dim, value_dim, wire, max_batch)


def _check_device(device: Any, state_dim: int, action_dim: int, value_dim: int, wire: str) -> None:
    """Whether the arrays of a BatchDevice are those of the service."""
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
