"""Uniformity of rows on the sphere: the logarithm of the mean Gaussian potential of all pairs.

With z the normalised rows and s_ij = cos(x_i, x_j), |z_i - z_j|^2 = 2 - 2 s_ij, so the loss is one sum over pairs
(ops/pairs.py):

    L = ln (1 / N(N-1)) sum_{i != j} exp(-t |z_i - z_j|^2) = ln sum_i exp(n_i) - ln N(N-1) - 2t,
    n_i = ln sum_{j != i} exp(2t s_ij)

What this file does not do: alignment (alignment.py), or gather rows of other processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.pairs import row_logsumexp
from .checks import check_pair_backend, check_positive, check_rows, scalar_like, shown_temperature, working_dtype
from .cosine import half_rows, unit_rows


def uniformity_loss(x: Tensor, *, t: float | Tensor = 2.0, backend: str = "auto") -> Tensor:
    """Logarithm of the mean over pairs of a Gaussian of their distance on the sphere.

    L = ln mean_{i<j} exp(-t |z_i - z_j|^2), z_i = x_i / |x_i|  (Wang and Isola 2020, "Understanding Contrastive
    Representation Learning through Alignment and Uniformity on the Hypersphere", section 4.1.2 and Figure 5). It lies
    between -4t and 0, and the smaller, the more evenly the rows are spread.

    Other code: align_uniform's `uniform_loss` expects rows that are normalised already, and its authors take the mean
    of the losses of two views.

    At collapse (all rows equal) the loss is 0, its largest value, and its gradient is 0, as wherever all rows lie on
    one line through 0 (rank 1): it does not lead out of there by itself. A zero row has cosine 0, so it counts as at
    right angles to all, and gradient 0.

    Under DDP the mean of gradients is that of the mean of the ranks' losses, each of its own rows; it is that of the
    joint batch if every rank gives this function the rows of all (`ops.gather.gather_rows(x).rows`).

    Args:
        x: [N, D], N >= 2, any floating dtype, not necessarily normalised.
        t: > 0, no unit: how fast the potential falls with the squared distance. A tensor (0-d) may require grad; its
            value is not looked at.
        backend: auto, reference, cpu or triton. float64 is the reference's.

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64.

    Raises:
        TypeError: x is not a floating point tensor, or `t` neither a number nor a floating point tensor.
        ValueError: x is not [N, D] with N >= 2, `t` is not positive or not 0-d, or `backend` is unknown.
    """
    check_rows("x", x)
    if x.shape[0] < 2:
        raise ValueError(f"x must have at least 2 rows, so that pairs exist, got {x.shape[0]}")
    check_positive("t", t, x)
    check_pair_backend(backend)
    with torch.autocast(x.device.type, enabled=False):
        z = unit_rows(x.to(working_dtype("x", x)))  # [N, D]
        scale = 2 * scalar_like(t, z)
        pairs = scale.new_full((), z.shape[0] * (z.shape[0] - 1))  # each twice
        others = row_logsumexp(z, scale=scale, x_half=half_rows(x, backend), backend=backend)  # [N]
        return others.logsumexp(dim=0) - pairs.log() - scale


class UniformityLoss(nn.Module):
    """`uniformity_loss` with its settings kept: ln mean_{i<j} exp(-t |z_i - z_j|^2) (Wang and Isola 2020).

    Args:
        t: > 0, no unit; a number, or a 0-d tensor, of which a Parameter becomes one of this module.
        backend: as in `uniformity_loss`.

    Raises:
        TypeError: `t` is neither a number nor a floating point tensor.
        ValueError: `t` is not positive and finite or not 0-d, or `backend` is unknown.
    """

    def __init__(self, t: float | Tensor = 2.0, *, backend: str = "auto") -> None:
        super().__init__()
        check_positive("t", t)
        check_pair_backend(backend)
        self.t = t
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """Loss of one batch of rows; see `uniformity_loss`.

        Args:
            x: [N, D].

        Returns:
            A 0-d tensor.
        """
        return uniformity_loss(x, t=self.t, backend=self.backend)

    def extra_repr(self) -> str:
        """The settings, for `repr`."""
        return f"t={shown_temperature(self.t)}"
