"""Losses of the policy."""

from __future__ import annotations

import torch
from torch import Tensor

from shmzero.nets.masks import bits


def action_weights(batch: dict[str, Tensor], random_moves: float, cap: float) -> Tensor:
    """How much each decision counts for the critic, [B], 1 in the mean: 1 / the probability of what was done,
    `cap` at most.

    What the policy hardly ever does is otherwise valued by how its usual choice turned out, and a choice that
    has become wrong stays.
    """
    chosen = batch["policies"].gather(1, batch["actions"].long()[:, None])[:, 0].float()
    probability = (1 - random_moves) * chosen + random_moves / bits(batch["masks"]).sum(dim=1).float()
    weights = (1 / probability).clamp(max=cap)
    return weights / weights.mean()


@torch.no_grad()
def push(
    policies: Tensor, log_policies: Tensor, left: Tensor, masks: Tensor, entropy_weight: float, share: float
) -> Tensor:
    """How far the log-probability of each action is to rise, [B, 52].

    It is the action's advantage, the entropy's included, times a weight: its probability, mixed to the `share`
    with one that is the same for all legal actions. `left` [B, 52]: what each action leaves to the best one.

    With probabilities alone this is the gradient of what the policy comes to, entropy included. That gradient
    vanishes where an action is nearly certain, and a choice that was wrong early stays. The mixture comes to rest
    where the gradient does, at softmax(Q / entropy_weight), and like it is linear in Q.
    """
    worth = -left - entropy_weight * log_policies
    advantages = (worth - (policies * worth).sum(dim=1, keepdim=True)) * masks
    uniform = masks.float() / masks.sum(dim=1, keepdim=True)
    return torch.lerp(policies, uniform, share) * advantages
