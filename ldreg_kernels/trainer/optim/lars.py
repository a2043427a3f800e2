"""LARS (You et al. 2017, "Large Batch Training of Convolutional Networks"), as official SSL repositories have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .layerwise import LayerwiseSGD, norms


class LARS(LayerwiseSGD):
    """Layer-wise adaptive rate scaling: the step of a tensor is proportional to the tensor's own norm.

        d = g + wd theta;   d <- d eta |theta| / |d|  (1 if either norm is 0)
        mu <- momentum mu + d;   theta <- theta - lr mu

    The form of Barlow Twins, VICReg, MoCo v3, MAE and LDReg: no Nesterov, no clipping, momentum over the scaled
    direction. A group with `adapt=False` (biases and norms, see groups.py) leaves the ratio out.

    Args:
        params: parameters, or groups of them; `lr`, `weight_decay`, `adapt` and the others may differ by group.
        lr: learning rate; large, 0.2 to 5, because eta makes the steps small.
        momentum: in [0, 1).
        weight_decay: wd.
        trust_coefficient: eta.
        adapt: whether d is scaled.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, params: Any, lr: float, *, adapt: bool = True, **settings: float) -> None:
        super().__init__(params, lr, **settings, adapt=adapt)

    def direction(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """g + wd theta, scaled to eta |theta| where the group is adapted."""
        d = gradients
        if group["weight_decay"] > 0:
            d = list(torch._foreach_add(d, parameters, alpha=group["weight_decay"]))
        if group["adapt"]:
            size, length = norms(parameters), norms(d)  # [tensors] each
            usable = (size > 0) & (length > 0)
            ratio = torch.where(usable, group["trust_coefficient"] * size / length, 1.0)
            d = list(torch._foreach_mul(d, list(ratio.unbind())))
        return d
