"""BYOL's loss: predictions of one view against the momentum network's projections of the other, in plain torch.

What this file does not do: run networks, or gather rows of other processes (the loss is a mean over rows, so the mean
over processes is right as it is).
"""

from __future__ import annotations

from torch import Tensor, nn

from .cross_view import cross_view_cosines


def byol_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Squared distance of normalised predictions and normalised targets, both ways.

    L = (1/N) sum_i [ (2 - 2 cos(p1_i, z2_i)) + (2 - 2 cos(p2_i, z1_i)) ]  (Grill et al. 2020, "Bootstrap Your Own
    Latent", equation 2 and the paragraph behind it). The two directions are *added*, so the loss lies in [0, 8].
    Averaging them halves the gradient, which costs accuracy at the published learning rates (lightly-ai/lightly#1286),
    and doubles the weight of whatever is added to the loss. No gradient reaches z1 and z2.

    It is a function of cosines, the same at every scale of the rows; a zero row has cosine 0 and gradient 0.

    At full collapse (all rows of all inputs equal) the loss is 0, its minimum, and its gradient is 0: only the
    predictor and the momentum network keep a training away from there.

    Under DDP, which averages gradients, it is the loss of the joint batch where ranks hold equally many rows; otherwise
    every rank counts the same, however many it holds.

    Args:
        p1: the predictor's outputs of the first views, [N, D], any floating dtype, not necessarily normalised.
        p2: of the second views, [N, D]; row i shows the same image as row i of `p1`.
        z1: the momentum projector's outputs of the first views, [N, D].
        z2: of the second views, [N, D].

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64; under autocast,
        several dtypes (a momentum network outside of it) in the widest.

    Raises:
        TypeError: an input is not a floating point tensor, or its dtype is not that of `p1` outside of autocast.
        ValueError: an input does not have the shape of `p1`, or that is not [N, D] with N >= 1.
    """
    # Twice the mean over 2N: the mean over N of the sum of two.
    return 2 * (2 - 2 * cross_view_cosines(p1, p2, z1, z2)).mean()


class BYOLLoss(nn.Module):
    """`byol_loss` as a module: the sum over both directions of the mean of 2 - 2 cos (BYOL, equation 2)."""

    def forward(self, p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of two views' predictions and targets; see `byol_loss`.

        Args:
            p1: predictions of the first views, [N, D].
            p2: predictions of the second views, [N, D].
            z1: targets of the first views, [N, D].
            z2: targets of the second views, [N, D].

        Returns:
            A 0-d tensor.
        """
        return byol_loss(p1, p2, z1, z2)
