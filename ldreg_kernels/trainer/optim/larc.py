"""LARC, the variant of LARS in NVIDIA's apex (parallel/LARC.py), which SwAV was trained with. It is not LARS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .layerwise import LayerwiseSGD, norms


class LARC(LayerwiseSGD):
    """Layer-wise adaptive rate control without clipping, over SGD with momentum.

        d = (g + wd theta) eta |theta| / (|g| + wd |theta| + 1e-8),   or g if |theta| or |g| is 0
        mu <- momentum mu + d;   theta <- theta - lr mu

    Unlike LARS it acts on all tensors, biases and norms too, adds the norms of gradient and decay instead of taking the
    norm of their sum, and leaves a tensor with a zero norm without weight decay as well.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: wd.
        trust_coefficient: eta.

    Raises:
        ValueError: a setting is out of range.
    """

    def direction(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Gradient and decay scaled by the ratio of norms."""
        decay = group["weight_decay"]
        size, slope = norms(parameters), norms(gradients)  # [tensors] each
        usable = (size > 0) & (slope > 0)
        ratio = torch.where(usable, group["trust_coefficient"] * size / (slope + decay * size + 1e-8), 1.0)
        d = list(torch._foreach_mul(parameters, list((decay * usable.to(size)).unbind())))
        torch._foreach_add_(d, gradients)
        torch._foreach_mul_(d, list(ratio.unbind()))
        return d
