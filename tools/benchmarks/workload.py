"""What the transports carry: rows of these widths, and models that answer them."""

from __future__ import annotations

from typing import Any

import numpy as np

from shmzero.nets.config import NETS, NetName

STATE_DIM, ACTION_DIM, VALUE_DIM = 256, 52, 1


def trivial(states: Any, masks: Any) -> tuple[Any, Any]:
    """Next to no work: what is measured is the way there and back."""
    return masks.astype(np.float32), states[:, :VALUE_DIM]


def make_trivial() -> Any:
    return trivial


def make_net(net: NetName, device: str) -> Any:
    """A fresh network of NETS, eager, in float32, with one thread, as a function of numpy arrays."""
    import torch

    from shmzero.nets.blob_net import BlobNet

    torch.set_num_threads(1)
    model = BlobNet(NETS[net]).to(device)

    def evaluate_many(states: Any, masks: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            policies, values = model.policy_value(*(torch.as_tensor(part).to(device) for part in (states, masks)))
            return policies.cpu().numpy(), values.cpu().numpy()

    return evaluate_many


def make_plan() -> Any:
    return make_net("plan", "cpu")


MODELS = {"trivial": make_trivial, "plan": make_plan}
