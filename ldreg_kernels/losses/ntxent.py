"""NT-Xent, the contrastive loss of SimCLR, in plain torch.

With z the 2N projector outputs of N images (view 1 stacked on view 2), s_ij = cos(z_i, z_j) and p(i) the
other view of image i, the loss is the mean over all 2N rows of a cross-entropy over the 2N - 1 candidates
that are not the row itself:

    l_i = -s_{i,p(i)} / t + ln sum_{j != i} exp(s_ij / t),      L = (1 / 2N) sum_i l_i

What this file does not do: gather rows of other processes (the distributed room does), or tile the 2N x 2N logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_like, check_rows
from .cosine import unit_rows


def nt_xent_loss(z1: Tensor, z2: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Normalised temperature-scaled cross-entropy between two views of the same images.

    L = (1/2N) sum_i [ -s_{i,p(i)}/t + ln sum_{j != i} exp(s_ij/t) ]  (Chen et al. 2020, "A Simple Framework
    for Contrastive Learning of Visual Representations", equation 1 and Algorithm 1). This is the *mean over
    2N rows*, as the paper and LDReg's experiments use it. Google's released code adds the means of the two
    views, which is twice this; the factor matters wherever the loss is balanced against a regulariser.

    It is a function of cosines, the same at every scale of the rows; a zero row has cosine 0 and gradient 0.

    Args:
        z1: projector outputs of the first views, [N, D], any floating dtype, not necessarily normalised.
        z2: projector outputs of the second views, [N, D]; row i shows the same image as row i of `z1`.
        temperature: t > 0, no unit. 0.1 for ImageNet with a ResNet-50, 0.5 for CIFAR-10, in the paper.

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64.

    Raises:
        TypeError: an input is not a floating point tensor, or the two dtypes differ.
        ValueError: shapes differ or are not [N, D], N < 2 (no negatives exist), or `temperature` is not
            positive.
    """
    _check(z1, z2, temperature)
    rows = z1.shape[0]
    # exp(s/t) loses whole digits in half precision at t = 0.1, so the logits are made in at least float32,
    # and autocast must not take the matmul back down.
    dtype = torch.promote_types(z1.dtype, torch.float32)
    with torch.autocast(z1.device.type, enabled=False):
        z = unit_rows(torch.cat([z1, z2]).to(dtype))  # [2N, D]
        logits = z @ z.T / temperature  # [2N, 2N]
        own = torch.eye(2 * rows, dtype=torch.bool, device=z.device)  # [2N, 2N]
        logits = logits.masked_fill(own, -math.inf)  # a row is never its own candidate
        positives = torch.arange(2 * rows, device=z.device).roll(rows)  # [2N] i -> i + N, modulo 2N
        return F.cross_entropy(logits, positives)


class NTXentLoss(nn.Module):
    """`nt_xent_loss` with its temperature kept: L = (1/2N) sum_i l_i (SimCLR, equation 1).

    Args:
        temperature: t > 0, no unit.

    Raises:
        ValueError: `temperature` is not positive and finite.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of two batches of projector outputs; see `nt_xent_loss`.

        Args:
            z1: first views, [N, D].
            z2: second views, [N, D].

        Returns:
            A 0-d tensor.
        """
        return nt_xent_loss(z1, z2, temperature=self.temperature)

    def extra_repr(self) -> str:
        """The temperature, for `repr`."""
        return f"temperature={self.temperature}"


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _check(z1: Tensor, z2: Tensor, temperature: float) -> None:
    _check_temperature(temperature)
    check_rows("z1", z1)
    check_rows("z2", z2)
    check_like("z2", z2, "z1", z1)
    if z1.shape[0] < 2:
        raise ValueError(f"z1 must have at least 2 rows, so that negatives exist, got {z1.shape[0]}")
