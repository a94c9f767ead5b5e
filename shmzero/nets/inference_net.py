"""InferenceNet: a BlobNet as it is served.

Weights are folded and cast once and enter each call as arguments, so that a swap changes the whole
list between two batches and no batch sees a mixture. Products of the blocks run in the chosen
precision; residual stream, normalisation, heads and softmax in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shmzero import _core
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.config import NetConfig
from shmzero.nets.masks import masked_softmax, unpack_masks
from shmzero.nets.precision import DTYPES


class InferenceNet:
    """The serving function of a NetConfig in one precision: weights in, nothing kept."""

    def __init__(self, config: NetConfig, precision: str, values: bool = True) -> None:
        """`values`: false where nobody reads them, which saves the trunk that they alone need; they are then 0."""
        self.config = config
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.trunks = config.trunks if values else 1

    def weights(self, net: BlobNet, device: str = "cpu") -> list[Tensor]:
        """A network's weights as `__call__` takes them. The input scale is folded in, products cast."""
        named = {name: t.detach().to(device) for name, t in net.state_dict().items()}
        out: list[Tensor] = []
        for t in range(self.trunks):
            out.append((named[f"inputs.{t}.weight"] * named["input_scale"]).to(self.dtype))
            out.append(named[f"inputs.{t}.bias"].to(self.dtype))
            for b in range(self.config.blocks):
                at = f"trunks.{t}.{b}."
                for layer in ("mix", "up", "down"):
                    out.append(named[f"{at}{layer}.weight"].to(self.dtype))
                    out.append(named[f"{at}{layer}.bias"].to(self.dtype))
                for norm in ("norm1", "norm2"):
                    out += [named[f"{at}{norm}.weight"].float(), named[f"{at}{norm}.bias"].float()]
        for head in ("bids", "cards", "value"):
            out += [named[f"{head}.weight"].float(), named[f"{head}.bias"].float()]
        return [t.contiguous() for t in out]

    def __call__(self, features: Tensor, masks: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """(policies [B, 52], values [B, 1]) of features [B, 256] f16 and masks [B] int64 words."""
        left = iter(weights)
        width = self.config.width

        def product(x: Tensor) -> Tensor:
            return F.linear(x.to(self.dtype), next(left), next(left))

        def normalised(x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
            return F.layer_norm(x, (width,), norm[0], norm[1])

        streams = []
        for _ in range(self.trunks):
            x = product(features).float()
            for _ in range(self.config.blocks):
                mix, up, down = [(next(left), next(left)) for _ in range(3)]
                norm1, norm2 = [(next(left), next(left)) for _ in range(2)]
                x = normalised(x + F.linear(x.to(self.dtype), *mix).float(), norm1)
                h = F.relu(F.linear(x.to(self.dtype), *up))
                x = normalised(x + F.linear(h, *down).float(), norm2)
            streams.append(x)
        bids, cards, value = [(next(left), next(left)) for _ in range(3)]
        playing = features[:, _core.PLAYING_FEATURE, None] > 0.5
        logits = torch.where(playing, F.linear(streams[0], *cards), F.linear(streams[0], *bids))
        policies = masked_softmax(logits, unpack_masks(masks))
        if self.trunks < self.config.trunks:
            return policies, torch.zeros_like(policies[:, :1])
        return policies, F.linear(streams[-1], *value)
