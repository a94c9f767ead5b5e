"""AdamW with a warm-up, gradient clipping and a guard against steps that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from shmzero.errors import ModelFailed
from shmzero.learner.config import LearnerConfig

MOST_SKIPPED = 20


class Optimiser:
    """Fused AdamW over some modules, with clipping; a gradient that is not finite changes nothing."""

    def __init__(self, modules: Iterable[nn.Module | None], config: LearnerConfig, scale_gradients: bool) -> None:
        """`scale_gradients`: the products are in float16, whose gradients would vanish."""
        self.parameters = [parameter for module in modules if module for parameter in module.parameters()]
        self.adam = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.skipped = 0
        """Steps whose gradient was not finite."""
        self._clip = config.clip
        self._in_a_row = 0
        self._scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=scale_gradients)

    def step(self, loss: Tensor, learning_rate: float) -> Tensor | None:
        """One step; the gradient's norm, None where it was skipped. Raises ModelFailed after many of those."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self.adam)
        norm = nn.utils.clip_grad_norm_(self.parameters, self._clip)
        if math.isfinite(float(norm)):
            self._in_a_row = 0
            self._scaler.step(self.adam)
            self._scaler.update()
            return norm
        self._scaler.update()
        self.adam.zero_grad(set_to_none=True)
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= MOST_SKIPPED:
            raise ModelFailed(
                f"{MOST_SKIPPED} batches in a row without a finite gradient; lower learning_rate, or set autocast = off"
            )
        return None

    def state(self) -> dict[str, Tensor]:
        """What `load` needs, by place of the parameter and name."""
        slots = self.adam.state_dict()["state"].items()
        return {f"{place}.{name}": t for place, slot in slots for name, t in slot.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, t in state.items():
            place, _, field = name.partition(".")
            slots.setdefault(int(place), {})[field] = t
        self.adam.load_state_dict({"state": slots, "param_groups": self.adam.state_dict()["param_groups"]})
