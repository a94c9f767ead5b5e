"""Masks and masked policies as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from shmzero import _core


def masked_softmax(logits: Tensor, masks: Tensor) -> Tensor:
    """Softmax over the legal actions, in float32; zeros, never NaN, for a row without any."""
    logits = logits.float().masked_fill(~masks, -1e30)
    policies = torch.softmax(logits, dim=-1)
    return policies * masks


def unpack_masks(words: Tensor) -> Tensor:
    """Legal actions, bool [..., 52], of mask words int64 [...]: _core.unpack_masks for tensors on any device."""
    places = torch.arange(_core.NUM_ACTIONS, dtype=torch.int64, device=words.device)
    return ((words[..., None] >> places) & 1).bool()
