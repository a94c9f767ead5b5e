"""Losses of the policy and the critic. Read next: algorithm.py, which adds them up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shmzero.nets.masks import unpack_masks


def action_weights(batch: dict[str, Tensor], random_moves: float, cap: float) -> Tensor:
    """How much each decision counts for the critic, [B], 1 in the mean: 1 / the probability of what was done,
    `cap` at most.

    What the policy hardly ever does is otherwise valued by how its usual choice turned out, and a choice that
    has become wrong stays.
    """
    chosen = batch["policies"].gather(1, batch["actions"].long()[:, None])[:, 0].float()
    probability = (1 - random_moves) * chosen + random_moves / unpack_masks(batch["masks"]).sum(dim=1).float()
    weights = (1 / probability).clamp(max=cap)
    return weights / weights.mean()


def loss_by_critic(
    policies: Tensor,
    q: Tensor,
    masks: Tensor,
    entropy: Tensor,
    log_policies: Tensor,
    entropy_weight: float,
    share: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, regret, advantage) of policies [B, 52] whose actions a critic values at q [B, 52]; each a number.

    loss: to be minimised; it is worth regret - entropy_weight * entropy, and its gradient is `policy_gradient`.
    regret: what the policy leaves to the best action, on average. advantage: root mean square over the legal actions.
    It is linear in Q: a softmax over Q would teach what only a clairvoyant can know.
    """
    regrets = (q.masked_fill(~masks, -math.inf).amax(dim=1, keepdim=True) - q) * masks
    regret = (policies * regrets).sum(dim=1).mean()
    with torch.no_grad():
        advantages = ((policies * regrets).sum(dim=1, keepdim=True) - regrets) * masks
        advantage = (advantages.square().sum(dim=1) / masks.sum(dim=1)).mean().sqrt()
    gradient = policy_gradient(policies, log_policies, regrets, masks, entropy_weight, share)
    moved = (gradient * log_policies).sum(dim=1).mean()
    worth = (regret - entropy_weight * entropy).detach()
    return worth - (moved - moved.detach()), regret, advantage


@torch.no_grad()
def policy_gradient(
    policies: Tensor, log_policies: Tensor, regrets: Tensor, masks: Tensor, entropy_weight: float, share: float
) -> Tensor:
    """How far the log-probability of each action is to rise, [B, 52].

    It is the action's advantage, the entropy's included, times a weight: its probability, mixed to the `share`
    with one that is the same for all legal actions. `regrets` [B, 52]: by how much the best action is better.

    With probabilities alone this is the gradient of the policy's expected utility, entropy included. That gradient
    vanishes where an action is nearly certain, and a choice that was wrong early stays. The mixture comes to rest
    where the gradient does, at softmax(Q / entropy_weight), and like it is linear in Q.
    """
    worth = -regrets - entropy_weight * log_policies
    advantages = (worth - (policies * worth).sum(dim=1, keepdim=True)) * masks
    uniform = masks.float() / masks.sum(dim=1, keepdim=True)
    return torch.lerp(policies, uniform, share) * advantages


def calibration(values: Tensor, utilities: Tensor) -> tuple[Tensor, Tensor]:
    """(slope, bias) of values [B] against the utilities [B] of the same rounds.

    slope: of the utilities over the values, 1 where the values are calibrated; bias: mean value less mean utility.
    """
    bias = values.mean() - utilities.mean()
    covariance = ((values - values.mean()) * (utilities - utilities.mean())).mean()
    return covariance / values.var(correction=0).clamp(min=1e-9), bias
