"""Alignment of two views: how far apart the rows of an image lie on the sphere, in plain torch.

What this file does not do: uniformity (uniformity.py), or gather rows of other processes (the loss is a mean over rows,
so the mean over processes is right as it is).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .checks import check_like, check_number, check_rows, working_dtype
from .cosine import unit_rows


def alignment_loss(x: Tensor, y: Tensor, *, alpha: float = 2.0) -> Tensor:
    """Mean power of the distance of two views' normalised rows.

    L = (1/N) sum_i |x_i/|x_i| - y_i/|y_i||^alpha  (Wang and Isola 2020, "Understanding Contrastive Representation
    Learning through Alignment and Uniformity on the Hypersphere", section 4.1.1 and Figure 5). It lies in
    [0, 2^alpha]; with alpha = 2 it is the mean of 2 - 2 cos, half of `byol_loss`, with gradient in both.

    Other code: align_uniform's `align_loss` expects rows that are normalised already.

    Where two rows are equal their gradient is 0, for every alpha, also for 1, whose distance has a kink there.

    At collapse (all rows equal) the loss is 0, its minimum, and its gradient is 0, as wherever all rows lie on one line
    through 0 (rank 1): it asks for collapse, and something else has to forbid it. A zero row has cosine 0, so it counts
    as at distance sqrt(2), and gradient 0.

    Under DDP the mean of gradients is the gradient of the joint loss where ranks hold equally many rows.

    Args:
        x: [N, D], N >= 1, any floating dtype, not necessarily normalised.
        y: [N, D]; row i shows the same image as row i of `x`.
        alpha: the power, >= 1 (below 1 the gradient of equal rows has no bound).

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64; under autocast,
        several dtypes in the widest.

    Raises:
        TypeError: an input is not a floating point tensor, dtypes differ outside of autocast, or `alpha` is no number.
        ValueError: y does not have the shape of x, that is not [N, D] with N >= 1, or `alpha` is below 1 or infinite.
    """
    check_rows("x", x)
    if x.shape[0] < 1:
        raise ValueError("x must have at least 1 row, got 0")
    check_rows("y", y)
    check_like("y", y, "x", x)
    _check_alpha(alpha)
    dtype = working_dtype("x", x, y=y)
    with torch.autocast(x.device.type, enabled=False):
        one, other = unit_rows(x.to(dtype)), unit_rows(y.to(dtype))
        # Of the difference: 2 - 2 cos has no digits left for rows that are close. A zero row has none of its length 1.
        zero = (one == 0).all(dim=1) | (other == 0).all(dim=1)  # [N]
        squared = torch.where(zero, 2.0, (one - other).square().sum(dim=1))  # [N]
        if alpha == 2:
            return squared.mean()
        apart = squared > 0
        return torch.where(apart, torch.where(apart, squared, 1.0) ** (alpha / 2), 0.0).mean()


class AlignmentLoss(nn.Module):
    """`alignment_loss` with its setting kept: the mean of |x_i/|x_i| - y_i/|y_i||^alpha (Wang and Isola 2020).

    Args:
        alpha: the power, >= 1.

    Raises:
        TypeError: `alpha` is no number.
        ValueError: `alpha` is below 1 or infinite.
    """

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        _check_alpha(alpha)
        self.alpha = alpha

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of two views; see `alignment_loss`.

        Args:
            x: first views, [N, D].
            y: second views, [N, D].

        Returns:
            A 0-d tensor.
        """
        return alignment_loss(x, y, alpha=self.alpha)

    def extra_repr(self) -> str:
        """The setting, for `repr`."""
        return f"alpha={self.alpha}"


def _check_alpha(alpha: float) -> None:
    check_number("alpha", alpha)
    if not 1 <= alpha < math.inf:
        raise ValueError(f"alpha must be at least 1 and finite, got {alpha}")
