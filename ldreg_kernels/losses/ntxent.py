"""NT-Xent, the contrastive loss of SimCLR, without the 2N x 2N logits.

With z the 2N projector outputs of N images (view 1 stacked on view 2), s_ij = cos(z_i, z_j) and p(i) the
other view of image i, the loss is the mean over all 2N rows of a cross-entropy over the 2N - 1 candidates
that are not the row itself:

    l_i = -s_{i,p(i)} / t + ln sum_{j != i} exp(s_ij / t),      L = (1 / 2N) sum_i l_i

With n_i = ln sum over the 2N - 2 negatives, which the fused sums make (ops/pairs.py), that is ln(1 + exp(n_i - s/t)):
small losses keep all their digits. The candidates may be joined by the rows of other processes, whose images then count
as one batch, and by a memory bank.

What this file does not do: keep a memory bank up to date.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops import validate
from ..ops.pairs import row_logsumexp
from .checks import (
    check_bank,
    check_like,
    check_pair_backend,
    check_rows,
    check_temperature,
    scale_of,
    working_dtype,
)
from .cosine import half_rows, unit_rows
from .gathering import ContrastiveLoss, candidates_of


def nt_xent_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    negatives: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    equal_rows: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Normalised temperature-scaled cross-entropy between two views of the same images.

    L = (1/2N) sum_i [ -s_{i,p(i)}/t + ln sum_{j != i} exp(s_ij/t) ]  (Chen et al. 2020, "A Simple Framework
    for Contrastive Learning of Visual Representations", equation 1 and Algorithm 1). This is the *mean over
    2N rows*, as the paper and LDReg's experiments use it. Google's released code adds the means of the two
    views, which is twice this; the factor matters wherever the loss is balanced against a regulariser.

    It is a function of cosines, the same at every scale of the rows; a zero row has cosine 0 and gradient 0. At full
    collapse (all rows equal) the loss is ln(2N - 1) and its gradient is 0; near it, the gradient is small as well.

    No matrix of logits is kept, and none is made: forward and backward take tiles of it, saving O(N D). The gradient of
    a row is summed in a fixed order, the same on every run. Differentiating twice makes the matrices after all.

    With `group` the rows of all W ranks are candidates, and rank r returns the part of its own rows,

        L_r = W / (2 sum_q N_q) sum_{i of rank r} l_i,        (1/W) sum_r L_r = L of the joint batch,

    exactly: so DDP, which averages gradients over ranks, trains on the loss that one process with all images has. Where
    ranks hold equally many images, L_r is the mean over this rank's 2N rows. Otherwise a rank with more images has a
    larger L_r and one without images returns 0; only the mean over ranks is the loss. Gradients reach the rows of other
    ranks, so forward and backward are collective calls.

    `negatives` are further candidates of every row *beside* those of the batch. (MoCo, and lightly's NTXentLoss with a
    memory bank, contrast with the bank *instead of* the batch, and one view only.)

    Args:
        z1: projector outputs of the first views, [N, D], any floating dtype, not necessarily normalised.
        z2: projector outputs of the second views, [N, D]; row i shows the same image as row i of `z1`.
        temperature: t > 0, no unit. 0.1 for ImageNet with a ResNet-50, 0.5 for CIFAR-10, in the paper. A tensor (0-d)
            may be learned; its value is not looked at, and has to stay positive.
        negatives: a memory bank [K, D], K >= 1, not necessarily normalised; detach it if it is constant.
            Under `group` it is this rank's own: no other rank sees it, and ranks may hold different ones.
        group: the process group whose rows are gathered. None gathers nothing, whatever is initialised.
        equal_rows: every rank of `group` holds equally many rows, which then is not asked for; asking makes a GPU's
            host wait for the device.
        backend: auto, reference, cpu or triton. float64 is the reference's.

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64; under autocast,
        several dtypes (a memory bank in float32) in the widest.

    Raises:
        TypeError: an input is not a floating point tensor, dtypes differ outside of autocast, or `temperature` is
            neither a number nor a floating point tensor.
        ValueError: shapes differ or are not [N, D], no negatives exist (N < 2 over all ranks and no memory bank), N < 1
            beside a memory bank, `temperature` is not positive or not 0-d, `backend` is unknown, this process is not a
            member of `group`, or its ranks disagree in D or dtype.
    """
    _check(z1, z2, temperature, negatives)
    check_pair_backend(backend)
    validate.flag("equal_rows", equal_rows)
    # exp(s/t) loses whole digits in half precision at t = 0.1, so the logits are made in at least float32,
    # and autocast must not take the matmul back down.
    dtype = working_dtype("z1", z1, z2=z2, negatives=negatives)
    with torch.autocast(z1.device.type, enabled=False):
        rows = torch.cat([z1, z2])
        z = unit_rows(rows.to(dtype))  # [2N, D]
        # Rank after rank, view 1 on view 2 of each: a row's other view is in its own rank's block.
        fewest = 2 if negatives is None else 1
        batch, offset, weight = candidates_of("z1", z, group, equal_rows=equal_rows, fewest=fewest, views=2)
        alone = batch is z
        scale, half = scale_of(temperature, z), half_rows(rows, backend) if alone else None
        others = row_logsumexp(  # [2N]
            z, None if alone else batch, scale=scale, own=offset, views=2, x_half=half, backend=backend
        )
        if negatives is not None:
            bank, bank_half = unit_rows(negatives.to(dtype)), half_rows(negatives, backend)
            bank = row_logsumexp(z, bank, scale=scale, x_half=half, y_half=bank_half, backend=backend)
            others = torch.logaddexp(others, bank)
        first, second = z.chunk(2)
        positive = scale * (first * second).sum(dim=1)  # [N], of a row and of its other view alike
        return weight * torch.logaddexp(others - torch.cat([positive, positive]), scale.new_zeros(())).sum()


class NTXentLoss(ContrastiveLoss):
    """`nt_xent_loss` with its settings kept: L = (1/2N) sum_i l_i (SimCLR, equation 1).

    Args:
        temperature: t > 0, no unit; a number, or a 0-d tensor, of which a Parameter becomes one of this module.
        gather: where several processes run, take the rows of all as candidates; forward is then a collective call,
            which every process of the group has to make. If you gather rows yourself, pass gather=False, or they are
            there twice. The function gathers only if it is given a group.
        group: whose rows; None takes the default process group, if one is initialised when the loss is called. Copies
            have the same group; with one the loss cannot be pickled.
        equal_rows: every rank holds equally many rows (a sampler that pads or drops the rest sees to that).
        backend: as in `nt_xent_loss`.

    Raises:
        TypeError: `temperature` is neither a number nor a floating point tensor, a flag no bool, or `group` no process
            group.
        ValueError: `temperature` is not positive and finite or not 0-d, `backend` is unknown, this process is not a
            member of `group`, or `group` comes with gather=False.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        gather: bool = True,
        group: dist.ProcessGroup | None = None,
        equal_rows: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, gather, group, equal_rows, backend)

    def forward(self, z1: Tensor, z2: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Loss of two batches of projector outputs; see `nt_xent_loss`.

        Args:
            z1: first views, [N, D].
            z2: second views, [N, D].
            negatives: a memory bank, [K, D], or None.

        Returns:
            A 0-d tensor.
        """
        return nt_xent_loss(z1, z2, negatives=negatives, **self.settings())


def _check(z1: Tensor, z2: Tensor, temperature: float | Tensor, negatives: Tensor | None) -> None:
    check_rows("z1", z1)
    check_rows("z2", z2)
    check_like("z2", z2, "z1", z1)
    if negatives is not None:
        check_bank("negatives", negatives, "z1", z1)
    check_temperature(temperature, z1)
