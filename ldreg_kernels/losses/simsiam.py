"""SimSiam's loss: the negative cosine of one view's predictions and the other view's projections, in plain torch.

What this file does not do: run networks, or gather rows of other processes (the loss is a mean over rows, so the mean
over processes is right as it is).
"""

from __future__ import annotations

from torch import Tensor, nn

from .cross_view import cross_view_cosines


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Negative cosine of predictions and of the other view's projections, which are constants.

    L = -1/2 [ (1/N) sum_i cos(p1_i, z2_i) + (1/N) sum_i cos(p2_i, z1_i) ]  (Chen & He 2021, "Exploring Simple Siamese
    Representation Learning", equations 1 and 4), in [-1, 1]. No gradient reaches z1 and z2, detached or not:
    with one the method collapses (the paper's section 4.1).

    It is BYOL's loss but for constants: byol_loss = 4 + 4 simsiam_loss of the same four inputs. So its gradient is a
    quarter of BYOL's, and a regulariser beside it weighs four times as much.

    It is a function of cosines, the same at every scale of the rows; a zero row has cosine 0 and gradient 0. The
    published code takes torch's `CosineSimilarity`, whose floor of 1e-8 under the norms makes shorter rows count less,
    in the dtype that it gets.

    At full collapse (all rows of all inputs equal) the loss is -1, its minimum, and its gradient is 0: only predictor
    and constant targets keep a training away from there.

    Under DDP, which averages gradients, it is the loss of the joint batch where ranks hold equally many rows; otherwise
    every rank counts the same, however many it holds.

    Args:
        p1: the predictor's outputs of the first views, [N, D], any floating dtype, not necessarily normalised.
        p2: of the second views, [N, D]; row i shows the same image as row i of `p1`.
        z1: the projector's outputs of the first views, [N, D].
        z2: of the second views, [N, D].

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64; under autocast,
        several dtypes in the widest.

    Raises:
        TypeError: an input is not a floating point tensor, or its dtype is not that of `p1` outside of autocast.
        ValueError: an input does not have the shape of `p1`, or that is not [N, D] with N >= 1.
    """
    return -cross_view_cosines(p1, p2, z1, z2).mean()  # over 2N: half of the sum of two means over N


class SimSiamLoss(nn.Module):
    """`simsiam_loss` as a module: the negative mean cosine over both directions (SimSiam, equation 4)."""

    def forward(self, p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of two views' predictions and projections; see `simsiam_loss`.

        Args:
            p1: predictions of the first views, [N, D].
            p2: predictions of the second views, [N, D].
            z1: projections of the first views, [N, D].
            z2: projections of the second views, [N, D].

        Returns:
            A 0-d tensor.
        """
        return simsiam_loss(p1, p2, z1, z2)
