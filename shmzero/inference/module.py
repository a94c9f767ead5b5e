"""A torch module of the user's as a BatchDevice."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from shmzero import _core
from shmzero.errors import ConfigError, ModelFailed
from shmzero.inference.device import Staging
from shmzero.inference.function import PROBE_ROWS, Answers, FunctionDevice, one_line
from shmzero.nets.weights_file import in_names_of, read_tensors
from shmzero.shm.sizes import Widths

SAME = 1e-2
"""Answers differ by less, as a share of the largest, where the same weights run in other kernels or in bfloat16."""
EQUAL = 1e-6
"""The same for answers that a swap has left as they were, bit for bit."""
KEPT_ELSEWHERE = (
    "it keeps its weights where a swap does not reach (in a frozen or compiled graph, in values made of them once); "
    "start another server with the new module"
)


class ModuleDevice(FunctionDevice):
    """Serves a torch module, called with float32 states and bool masks on its device.

    On CUDA two batches are in flight, each on a stream and in pinned memory of its own.
    """

    _allowed = "torch tensors of real numbers"

    def __init__(
        self,
        module: Any,
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
        import torch

        self._torch = torch
        self._grad = grad
        self._device = self._usable(device)
        if copy:
            module = self._copied(module, "; copy=False serves the module itself, not to be trained meanwhile")
        self._on_cuda = self._device.type == "cuda"
        self.num_buffers = 2 if self._on_cuda else 1
        super().__init__(self._placed(module), widths, max_batch)

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

    def _new_buffer(self) -> Any:
        torch, widths = self._torch, self._widths
        host = [
            torch.zeros(self.max_batch, width, dtype=dtype, device="cpu")
            for width, dtype in (
                (widths.state_dim, getattr(torch, widths.wire)), (widths.mask_words, torch.int64),
                (widths.action_dim, torch.float32), (widths.value_dim, torch.float32), (widths.action_dim, torch.bool),
            )
        ]  # fmt: skip
        if self._on_cuda:
            host = [tensor.pin_memory() for tensor in host]
        staging = Staging(host[0].numpy(), host[1].numpy().view(np.uint64), host[2].numpy(), host[3].numpy())
        stream = torch.cuda.Stream(self._device) if self._on_cuda else None
        done = torch.cuda.Event() if self._on_cuda else None
        return staging, host[4].numpy(), host, stream, done

    def launch(self, buffer: int, rows: int) -> None:
        staging, masks = self._buffers[buffer][:2]
        _core.unpack_masks(staging.masks[:rows], masks[:rows])
        with self._named_failures(rows), self._torch.enable_grad() if self._grad else self._torch.inference_mode():
            self._run(self._buffers[buffer], rows)

    def _run(self, buffer: Any, rows: int) -> None:
        _, _, (states, _, policies_out, values_out, masks), stream, done = buffer
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

    def finished(self, buffer: int) -> bool:
        done = self._buffers[buffer][4]
        return done is None or bool(done.query())

    def wait(self, buffer: int) -> None:
        done = self._buffers[buffer][4]
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
