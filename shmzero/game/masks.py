"""Masks of legal actions as the core packs them, one word a row, and as numpy has them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shmzero import _core


def mask_words(masks: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """uint64 [B] out of bool [B, 52]."""
    return _core.pack_masks(np.asarray(masks, np.bool_))[:, 0]


def masks_of(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool [B, 52] out of uint64 [B]."""
    masks = np.empty((len(words), _core.NUM_ACTIONS), np.bool_)
    _core.unpack_masks(np.ascontiguousarray(words)[:, None], masks)
    return masks
