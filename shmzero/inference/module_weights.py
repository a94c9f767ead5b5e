"""Weights for a module that is served: read, checked against its own, and made ready to be copied into it.

Whether the module answers with them as it should is module.py's to find out.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shmzero.errors import ConfigError
from shmzero.nets.weights_file import in_names_of, read_tensors

KEPT_ELSEWHERE = (
    "it keeps its weights where a swap does not reach (in a frozen or compiled graph, in values made of them once); "
    "start another server with the new module"
)


def read_weights(weights: Any) -> Mapping[str, Any]:
    """Entries by name of a state_dict, or of the .safetensors file at a path. Raises ConfigError."""
    if isinstance(weights, Mapping):
        return weights
    if not isinstance(weights, (str, Path)):
        raise ConfigError(f"weights is {weights!r}; allowed: a module, a state_dict, a .safetensors file")
    return read_tensors(weights, "weights")[0]


def fitting(own: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`given` by the names of `own`. Raises ConfigError where they are another module's."""
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


def copies(own: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a state_dict as they are now, whatever is done to the module later."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else deepcopy(value) for name, value in own.items()
    }


def converted(own: Mapping[str, Any], given: Mapping[str, Any], *, of_module: bool) -> dict[str, Any]:
    """`given` in the dtypes and on the devices of `own`.

    `of_module`: `given` are the parameters of a module, which are converted in place as well: the module answers then
    with the numbers that will be served.
    """
    fresh = {}
    for name, value in given.items():
        if isinstance(own[name], Tensor):
            if of_module and value.dtype != own[name].dtype:
                value.data = value.data.to(own[name].dtype)
            value = value.detach().to(own[name].device, own[name].dtype)
        fresh[name] = value
    return fresh


def is_equal(old: Any, new: Any) -> bool:
    """Whether two entries of a state_dict hold the same numbers; counters, which no answer needs, aside."""
    if isinstance(old, (tuple, list)):
        return len(old) == len(new) and all(is_equal(a, b) for a, b in zip(old, new, strict=True))
    if not isinstance(old, Tensor) or not (old.is_floating_point() or old.is_quantized):
        return True
    return bool(torch.equal(old, new))
