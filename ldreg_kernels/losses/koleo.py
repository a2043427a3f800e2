"""KoLeo, the Kozachenko-Leonenko entropy estimate as a regulariser: spread rows by pushing nearest neighbours apart.

With u_i = x_i / |x_i| and d_ij the distance of u_i to its j-th nearest other row,

    L = -(1/(B k)) sum_i sum_{j <= k} ln(d_ij + epsilon)

Neighbours come from the exact search of `ops.knn`, which keeps no B x B matrix; the distances of the pairs it chose are
then computed once more, differentiably, from the differences of rows.

What this file does not do: gather rows of other processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import validate
from ..ops.knn import knn
from .checks import check_backend, check_bank, check_positive_number, check_rows, working_dtype
from .cosine import unit_rows


def koleo_loss(
    x: Tensor,
    y: Tensor | None = None,
    *,
    topk: int = 1,
    group_size: int | None = None,
    epsilon: float = 1e-8,
    backend: str = "auto",
) -> Tensor:
    """Negative mean logarithm of the distance to the nearest other row, of rows at length 1.

    L = -(1/(B k)) sum_i sum_{j <= k} ln(d_ij + epsilon)  (Sablayrolles et al. 2019, "Spreading vectors for similarity
    search", with k = 1; `topk` as in DINOv3). The gradient reaches both rows of a pair, pulling on whoever is a
    neighbour of others too. The choice of neighbours is constant.

    The published code (DINOv2, DINOv3) differs: neighbours by the largest product of normalised rows, in the dtype of
    the features, where near rows tie; its distances add 1e-8 to every entry of the difference (at a duplicate
    d is 1e-8 sqrt(D), and the gradient of that pair 1e8 / (1 + sqrt(D)) along (1, ..., 1), whatever the rows); rows
    shorter than 1e-8 are not brought to length 1; and DINOv3's version for several ranks searches among the rows of
    all. Here duplicates are at distance 0 and give -ln(epsilon), with gradient 0 (facebookresearch/dinov2#101).

    It is the same at every scale of the rows; a zero row stays zero, at distance 1 from all others, and has no
    gradient. Almost equal rows at distance d have a gradient of 1/(d + epsilon), parallel ones that are equal up to
    rounding a huge one: clip it, or warm up.

    At full collapse (all rows equal) the loss is -ln(epsilon) and its gradient is 0; near it, with rows d apart, the
    gradient grows like 1/d.

    Under DDP, which averages gradients, it is the mean over ranks of KoLeo among each rank's own rows (DINOv2), not
    that of the joint batch, whose nearest neighbours are nearer. For that one, every rank takes
    `koleo_loss(gather_rows(x).rows)` (ops/gather.py): the gradients add up to W times it, of which DDP takes the mean.

    Args:
        x: rows [B, D], any floating dtype, not necessarily normalised; B >= 2, or 1 with `y`.
        y: rows [M, D] to search among *instead of* x (other ranks' rows, a queue): constant, none of them from x, or
            each row would find itself. None takes x, each row's own index left out.
        topk: k, how many nearest neighbours of a row are pushed away; as many as there are, at most.
        group_size: the neighbours of a row are those in its group, each so many rows in a row (DINOv3: 16); divides B.
            Nothing with `y`.
        epsilon: > 0, under the logarithm.
        backend: of the search, as in `knn`.

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64; under autocast,
        two dtypes in the wider. NaN if a row is not finite.

    Raises:
        TypeError: an input is not a floating point tensor, dtypes differ outside of autocast, `topk` or `group_size` is
            no int, or `epsilon` is no number.
        ValueError: a shape does not fit, too few rows, `topk` out of its range, `group_size` does not divide B or comes
            with `y`, `epsilon` is not positive and finite, or `backend` is unknown.
        RuntimeError: a backend asked for by name that is unavailable, with the reason.
    """
    size = _check(x, y, topk, group_size)
    check_positive_number("epsilon", epsilon)
    check_backend(backend)
    dtype = working_dtype("x", x, y=y)
    with torch.autocast(x.device.type, enabled=False):
        rows = unit_rows(x.to(dtype))  # [B, D]
        others = rows if y is None else unit_rows(y.detach().to(dtype))  # [M, D]
        if size is None:
            nearest = knn(rows.detach(), None if y is None else others, k=topk, backend=backend).indices  # [B, k]
        else:
            starts = range(0, rows.shape[0], size)
            groups = (knn(group, k=topk, backend=backend).indices for group in rows.detach().split(size))
            nearest = torch.cat([start + indices for start, indices in zip(starts, groups, strict=True)])
        differences = rows.unsqueeze(1) - others[nearest]  # [B, k, D]
        # Its gradient is defined as 0 where the distance is.
        distances = torch.linalg.vector_norm(differences, dim=2)  # [B, k]
        return -(distances + epsilon).log().mean()


class KoLeoLoss(nn.Module):
    """`koleo_loss` with its settings kept (Sablayrolles et al. 2019).

    Args:
        topk: neighbours of a row that are pushed away.
        group_size: rows of a group, among which neighbours are looked for; None takes all.
        epsilon: > 0, under the logarithm.
        backend: of the search, as in `knn`.

    Raises:
        TypeError, ValueError: a bad setting, by name.
    """

    def __init__(
        self, topk: int = 1, *, group_size: int | None = None, epsilon: float = 1e-8, backend: str = "auto"
    ) -> None:
        super().__init__()
        check_positive_number("epsilon", epsilon)
        check_backend(backend)
        self.topk = validate.at_least("topk", topk, 1)
        self.group_size = None if group_size is None else validate.at_least("group_size", group_size, 2)
        self.epsilon = epsilon
        self.backend = backend

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Loss of a batch of rows; see `koleo_loss`.

        Args:
            x: rows [B, D].
            y: rows [M, D] to search among instead, constant, or None.

        Returns:
            A 0-d tensor.
        """
        return koleo_loss(x, y, topk=self.topk, group_size=self.group_size, epsilon=self.epsilon, backend=self.backend)

    def extra_repr(self) -> str:
        """The settings, for `repr`."""
        return f"topk={self.topk}, group_size={self.group_size}, epsilon={self.epsilon}, backend={self.backend!r}"


def _check(x: Tensor, y: Tensor | None, topk: int, group_size: int | None) -> int | None:
    """Rows and neighbours that there are; the size of a group, None for one of all rows."""
    check_rows("x", x)
    fewest = 2 if y is None else 1
    if x.shape[0] < fewest:
        raise ValueError(f"x must have at least {fewest} rows{' without y' if y is None else ''}, got {x.shape[0]}")
    if y is not None:
        check_bank("y", y, "x", x)
    group = x
    if group_size is not None:
        if y is not None:
            raise ValueError(f"group_size must be None with y, whose rows have no groups, got {group_size}")
        group_size = validate.at_least("group_size", group_size, 2)
        if x.shape[0] % group_size:
            raise ValueError(f"group_size must divide the {x.shape[0]} rows of x, got {group_size}")
        group = x[:group_size]
    validate.neighbours("topk", topk, 1, group, y, y is None)
    return group_size
