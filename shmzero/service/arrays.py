"""A caller's rows, whatever they are, as a slot takes them, and answers of the caller's kind. It imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmzero.shm.sizes import Widths


def slot_arrays(states: Any, masks: Any, widths: Widths, ndim: int) -> tuple[NDArray[Any], NDArray[np.bool_], Any]:
    """(states, masks) as the slot takes them, and the tensor that the answers shall be like, or None for numpy.

    `ndim`: 1 for one row, 2 for several. Raises ValueError for other shapes, dtypes and masks.
    """
    state_dim, action_dim, _, wire = widths
    states, like = _untorched(states)
    try:
        states = np.asarray(states)
    except ValueError as error:
        raise ValueError(f"states cannot be made an array: {error}") from None
    if states.dtype == wire:
        rows = np.ascontiguousarray(states)
    elif states.dtype.kind in "fiub":
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
            rows = np.ascontiguousarray(states, wire)
    else:
        raise ValueError(f"states has dtype {states.dtype}; allowed: real numbers, as float32 or int64")
    bools = mask_bools(masks)
    if ndim == 2 and len(rows) == 0 == len(bools):
        rows, bools = np.empty((0, state_dim)), np.empty((0, action_dim), np.bool_)
    if rows.ndim != ndim or rows.shape[-1] != state_dim:
        wanted = f"[n, {state_dim}]" if ndim == 2 else f"[{state_dim}]"
        raise ValueError(f"states has shape {list(rows.shape)}; the service takes {wanted}")
    if bools.shape != (*rows.shape[:-1], action_dim):
        raise ValueError(f"masks has shape {list(bools.shape)}; these states need {[*rows.shape[:-1], action_dim]}")
    return rows, bools, like


def mask_bools(masks: Any) -> NDArray[np.bool_]:
    """Masks as contiguous bools, out of bools or of 0 and 1 in whatever type, numpy or torch.

    Raises ValueError for anything else.
    """
    given = np.asarray(_untorched(masks)[0])
    if given.dtype == np.bool_ or given.size == 0:
        return np.ascontiguousarray(given, np.bool_)
    if given.dtype.kind not in "iuf":
        raise ValueError(f"masks has dtype {given.dtype}; allowed: bools, or numbers that are 0 or 1")
    bools = given == 1
    wrong = ~(bools | (given == 0))
    if wrong.any():
        place = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise ValueError(f"masks holds {given[place]:g} at {[int(at) for at in place]}; allowed: bools, 0 and 1")
    return np.ascontiguousarray(bools)


def _untorched(given: Any) -> tuple[Any, Any]:
    """(what numpy understands, the tensor that it was or None). Where torch is not imported nothing is a tensor."""
    if type(given) is np.ndarray or (torch := sys.modules.get("torch")) is None:
        return given, None
    if isinstance(given, Sequence) and len(given) > 0 and isinstance(given[0], torch.Tensor):
        given = torch.stack(list(given))
    if not isinstance(given, torch.Tensor):
        return given, None
    tensor = given.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()  # numpy has no such type
    return tensor.cpu().numpy(), given


def as_torch(array: NDArray[np.float32], like: Any) -> Any:
    """The array as a tensor, on the device of `like`."""
    tensor = sys.modules["torch"].from_numpy(array)
    return tensor.to(like.device)
