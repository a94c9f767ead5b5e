"""Masks of legal actions: 64 of them in a word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mask_words(masks: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """uint64 [B] out of bool [B, 52]."""
    bits = np.left_shift(np.uint64(1), np.arange(masks.shape[1], dtype=np.uint64))
    words: NDArray[np.uint64] = (np.asarray(masks, np.uint64) * bits).sum(axis=1, dtype=np.uint64)
    return words
