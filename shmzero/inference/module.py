"""A torch module of the user's as a BatchDevice. Read next: module_weights.py, for what a swap takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shmzero.errors import ConfigError, ModelFailed
from shmzero.inference.device import Staging
from shmzero.inference.function import PROBE_ROWS, Answers, Buffer, FunctionDevice, model_failed, one_line
from shmzero.inference.module_weights import KEPT_ELSEWHERE, converted, copies, fitting, is_equal, read_weights
from shmzero.shm.sizes import Widths

SAME = 1e-2
"""Answers differ by less, as a share of the largest, where the same weights run in other kernels or in bfloat16."""
EQUAL = 1e-6
"""The same for answers that a swap has left as they were, bit for bit."""


@dataclass(frozen=True)
class ModuleBuffer(Buffer):
    """A batch of a module. The tensors are the memory of `staging` and `masks`, pinned where the device is CUDA."""

    states: Tensor
    mask_tensor: Tensor
    policies: Tensor
    values: Tensor
    stream: torch.cuda.Stream | None
    done: torch.cuda.Event | None
    """Recorded when the answers are on the host. Both are None on a CPU."""


class ModuleDevice(FunctionDevice):
    """Serves a torch module, called with float32 states and bool masks on its device.

    On CUDA two batches are in flight, each on a stream and in pinned memory of its own.
    """

    _allowed = "torch tensors of real numbers"
    _buffers: Sequence[ModuleBuffer]

    def __init__(
        self,
        module: torch.nn.Module,
        widths: Widths,
        max_batch: int,
        device: str,
        copy: bool = True,
        grad: bool = False,
    ) -> None:
        """`device`: auto, cpu, cuda or cuda:N. Raises ConfigError where there is no such device.

        `copy`: serve a copy, which training the module leaves alone; else the module itself, which is moved to the
        device and put into evaluation mode. `grad`: it may take gradients within a call.
        """
        self._grad = grad
        self._device = _usable(device)
        if copy:
            module = _copied(module, "; copy=False serves the module itself, not to be trained meanwhile")
        self._on_cuda = self._device.type == "cuda"
        self.num_buffers = 2 if self._on_cuda else 1
        super().__init__(self._placed(module), widths, max_batch)

    def _placed(self, module: torch.nn.Module) -> torch.nn.Module:
        try:
            return module.to(self._device).eval()
        except Exception as error:  # whatever the user's module makes of it
            raise ConfigError(
                f"the module cannot be moved to {self._device}: {type(error).__name__}: {one_line(error)}"
            ) from None

    def _advice(self, failure: ModelFailed) -> str:
        needs_grad = not self._grad and ("grad" in str(failure) or "nference tensor" in str(failure))
        return "; grad=True lets a module take gradients" if needs_grad else ""

    def _place(self) -> str:
        return str(self._device)

    def _new_buffer(self) -> ModuleBuffer:
        widths = self._widths
        host = [
            torch.zeros(self.max_batch, width, dtype=dtype, device="cpu")
            for width, dtype in (
                (widths.state_dim, getattr(torch, widths.wire)), (widths.mask_words, torch.int64),
                (widths.action_dim, torch.float32), (widths.value_dim, torch.float32), (widths.action_dim, torch.bool),
            )
        ]  # fmt: skip
        if self._on_cuda:
            host = [tensor.pin_memory() for tensor in host]
        states, words, policies, values, masks = host
        return ModuleBuffer(
            staging=Staging(states.numpy(), words.numpy().view(np.uint64), policies.numpy(), values.numpy()),
            masks=masks.numpy(),
            states=states,
            mask_tensor=masks,
            policies=policies,
            values=values,
            stream=torch.cuda.Stream(self._device) if self._on_cuda else None,  # type: ignore[no-untyped-call]
            done=torch.cuda.Event() if self._on_cuda else None,  # type: ignore[no-untyped-call]
        )

    def _run(self, buffer: Buffer, rows: int) -> None:
        assert isinstance(buffer, ModuleBuffer)
        with torch.enable_grad() if self._grad else torch.inference_mode():
            states, masks = buffer.states[:rows], buffer.mask_tensor[:rows]
            if buffer.stream is None or buffer.done is None:
                policies, values = self._both(self._model(states.float(), masks), rows)
                buffer.policies[:rows].copy_(policies)
                buffer.values[:rows].copy_(values)
                return
            with torch.cuda.stream(buffer.stream):
                on_device = states.to(self._device, non_blocking=True).float()
                on_device_masks = masks.to(self._device, non_blocking=True)
                policies, values = self._both(self._model(on_device, on_device_masks), rows)
                buffer.policies[:rows].copy_(policies, non_blocking=True)
                buffer.values[:rows].copy_(values, non_blocking=True)
                buffer.done.record(buffer.stream)

    def _numbers(self, part: Any) -> Any:
        if not isinstance(part, Tensor) or part.is_complex():
            return None
        return part.detach() if self._grad else part

    def finished(self, buffer: int) -> bool:
        done = self._buffers[buffer].done
        return done is None or bool(done.query())  # type: ignore[no-untyped-call]

    def wait(self, buffer: int) -> None:
        done = self._buffers[buffer].done
        if done is not None:
            try:
                done.synchronize()
            except Exception as error:  # whatever the model has done on the device
                raise model_failed(error, self.max_batch) from error

    def swap(self, weights: Any) -> None:
        """Serve other weights: another module of this kind, its state_dict, or the path of a .safetensors file.

        They are copied into the module that is served. Raises ConfigError, and the old weights stay, where it then
        does not answer made-up rows as the new module does by itself; for weights without a module, where they are
        other ones and no answer changes. A module whose answers differ from call to call is not compared.
        """
        alone = self._by_itself(weights) if isinstance(weights, torch.nn.Module) else None
        given = read_weights(weights) if alone is None else alone.state_dict(keep_vars=True)
        own = self._model.state_dict()  # type: ignore[attr-defined]
        given = fitting(own, given)
        if not own and alone is None:
            raise ConfigError(f"the served module has no weights that can be replaced: {KEPT_ELSEWHERE}")
        with torch.no_grad():
            # All that can go wrong comes before the first of the old is overwritten.
            old = copies(own)
            fresh = converted(own, given, of_module=alone is not None)
            changed = not all(is_equal(own[name], value) for name, value in fresh.items())
        try:
            before = self._answers(self._model, self._probe_rows)
            self._load(fresh)
            self._check_swapped(before, changed, alone)
        except BaseException as error:
            self._load(old)
            if isinstance(error, ModelFailed):
                raise ConfigError(f"the weights cannot be served: {self._tried(self._probe_rows)} {error}") from error
            raise

    def _by_itself(self, module: torch.nn.Module) -> torch.nn.Module:
        """A copy of a new module on the device, as somebody may be training it; not compiled, which would take long."""
        return self._placed(_copied(getattr(module, "_orig_mod", module), "; give its state_dict() instead"))

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

    def _load(self, entries: Mapping[str, Any]) -> None:
        # What the module has made in inference mode cannot be written to in another one.
        with torch.no_grad() if self._grad else torch.inference_mode():
            state = self._model.state_dict()  # type: ignore[attr-defined]
            state.update(entries)  # and so with what it says about itself: versions of its modules
            self._model.load_state_dict(state)  # type: ignore[attr-defined]
        if self._on_cuda:
            torch.cuda.synchronize(self._device)


def _usable(device: str) -> torch.device:
    """The device of that name. Raises ConfigError where there is none, or it is no CPU and no CUDA device."""
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


def _copied(module: torch.nn.Module, advice: str) -> torch.nn.Module:
    try:
        return deepcopy(module)
    except Exception as error:  # whatever the user's module makes of it
        raise ConfigError(f"the module cannot be copied: {type(error).__name__}: {one_line(error)}{advice}") from None


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
