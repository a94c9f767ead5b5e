"""Rows of whatever kind a caller has, as a slot takes them, and answers in the caller's kind. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmzero import _core


def slot_arrays(
    states: Any, masks: Any, segment: _core.Segment, ndim: int
) -> tuple[NDArray[Any], NDArray[np.bool_], Any]:
    """Rows as the slot takes them, and the tensor that the answers shall be like (None: numpy)."""
    states, like = _untorched(states)
    masks, _ = _untorched(masks)
    with np.errstate(over="ignore"):  # beyond float16: infinite, and refused as such
        rows = np.ascontiguousarray(states, segment.wire)
    bools = np.asarray(masks)
    if bools.dtype != np.bool_:
        if bools.dtype.kind not in "iu" and bools.size:
            raise ValueError(f"masks has dtype {bools.dtype}; allowed: bool, or integers 0 and 1")
        bools = bools != 0
    bools = np.ascontiguousarray(bools)
    if ndim == 2 and len(rows) == 0 == len(bools):
        rows, bools = np.empty((0, segment.state_dim)), np.empty((0, segment.action_dim), np.bool_)
    if rows.ndim != ndim or rows.shape[-1] != segment.state_dim:
        wanted = f"[n, {segment.state_dim}]" if ndim == 2 else f"[{segment.state_dim}]"
        raise ValueError(f"states has shape {list(rows.shape)}; the service takes {wanted}")
    if bools.shape != (*rows.shape[:-1], segment.action_dim):
        raise ValueError(
            f"masks has shape {list(bools.shape)}; these states need {[*rows.shape[:-1], segment.action_dim]}"
        )
    return rows, bools, like


def _untorched(given: Any) -> tuple[Any, Any]:
    """(what numpy understands, the tensor it was or None). Imports no torch: without it nothing is a tensor."""
    torch = sys.modules.get("torch")
    if torch is None or type(given) is np.ndarray:
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
    tensor = sys.modules["torch"].from_numpy(array)
    return tensor.to(like.device)
