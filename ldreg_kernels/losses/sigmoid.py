"""The sigmoid loss of SigLIP: every pair of rows is a yes-or-no question of its own.

With a_ij = scale cos(x_i, y_j) + bias, row i of one side and row j of the other belong together where i = j:

    L = -(1/N) sum_ij ln sigmoid(l_ij a_ij) = (1/N) sum_i [ ln(1 + exp(-a_ii)) + sum_{j != i} ln(1 + exp(a_ij)) ]

The second sum is one over pairs (ops/pairs.py): no logits are kept. The positives are left out of it and added by
themselves, so that small losses keep all their digits.

What this file does not do: pass rows around a ring.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops import validate
from ..ops.pairs import row_softplus_sum
from .checks import (
    check_finite,
    check_like,
    check_number,
    check_pair_backend,
    check_positive,
    check_positive_number,
    check_rows,
    scalar_like,
    working_dtype,
)
from .cosine import half_rows, unit_rows
from .gathering import GatheringLoss, candidates_of


def sigmoid_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    group: dist.ProcessGroup | None = None,
    equal_rows: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Binary cross-entropy of all pairs of two sides' rows, of which those of equal index belong together.

    L = -(1/N) sum_ij ln sigmoid(l_ij (scale cos(z1_i, z2_j) + bias)), l_ij = 1 for i = j and -1 otherwise  (Zhai et
    al. 2023, "Sigmoid Loss for Language Image Pre-Training", section 3.2 and Algorithm 1). All N^2 pairs are summed and
    divided by N, so the loss grows with the batch. Gradients reach both sides, `scale` and `bias`.

    Other code: big_vision's is this; open_clip divides a rank's pairs by the rank's own N, which is this with equally
    many rows on every rank. A mean over the N^2 pairs (`binary_cross_entropy_with_logits`) is N times smaller.

    At collapse (all rows equal) the loss is ln(1 + exp(-a)) + (N - 1) ln(1 + exp(a)) with a = scale + bias, N ln 2 at
    the paper's initial values; the rows' gradient is 0, as wherever all rows lie on one line through 0 (rank 1), while
    scale and bias learn. A zero row has cosine 0 and gradient 0.

    With `group` the rows z2 of all W ranks are candidates, and rank r returns W / (sum_q N_q) times the sum of its own
    rows' terms, so the mean of gradients that DDP makes is the gradient of the joint loss. Gradients reach the rows z2
    of other ranks: forward and backward are collective calls.

    Args:
        z1: [N, D], N >= 1, any floating dtype, not necessarily normalised.
        z2: [N, D]; row i belongs to row i of `z1`.
        scale: > 0, no unit, one over a temperature; 10 at first in the paper, which learns its logarithm. A tensor
            (0-d) may be learned; its value is not looked at, and has to stay positive.
        bias: -10 at first in the paper: most pairs do not belong together. A number, or a 0-d tensor.
        group: the process group whose rows are gathered. None gathers nothing, whatever is initialised.
        equal_rows: every rank of `group` holds equally many rows, which then is not asked for; asking makes a GPU's
            host wait for the device.
        backend: auto, reference, cpu or triton. float64 is the reference's.

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64; under autocast,
        several dtypes in the widest.

    Raises:
        TypeError: an input is not a floating point tensor, dtypes differ outside of autocast, or `scale` or `bias` is
            neither a number nor a floating point tensor.
        ValueError: shapes differ or are not [N, D], N < 1 over all ranks, `scale` is not positive, `bias` not finite,
            one of them not 0-d, `backend` is unknown, this process is not a member of `group`, or its ranks disagree in
            D, in dtype, or in whether `z2` requires grad.
    """
    check_rows("z1", z1)
    check_rows("z2", z2)
    check_like("z2", z2, "z1", z1)
    check_positive("scale", scale, z1)
    check_finite("bias", bias, z1)
    check_pair_backend(backend)
    validate.flag("equal_rows", equal_rows)
    dtype = working_dtype("z1", z1, z2=z2)
    with torch.autocast(z1.device.type, enabled=False):
        first, second = unit_rows(z1.to(dtype)), unit_rows(z2.to(dtype))
        candidates, offset, weight = candidates_of("z1", second, group, equal_rows=equal_rows, fewest=1)
        steep, shift = scalar_like(scale, first), scalar_like(bias, first)
        others = row_softplus_sum(  # [N]
            first,
            candidates,
            scale=steep,
            bias=shift,
            own=offset,
            x_half=half_rows(z1, backend),
            y_half=half_rows(z2, backend) if candidates is second else None,
            backend=backend,
        )
        logits = steep * (first * second).sum(dim=1) + shift  # [N] of the positives
        return weight * (torch.logaddexp(-logits, steep.new_zeros(())) + others).sum()


class SigmoidLoss(GatheringLoss):
    """`sigmoid_loss` that owns its scale and bias: -(1/N) sum_ij ln sigmoid(l_ij (scale cos_ij + bias)) (SigLIP).

    As in the paper the logarithm of the scale is learned, `log_scale`, and `bias`; both belong into the optimiser,
    without weight decay. DDP averages the gradients of what it wraps: make the loss a part of that.

    Args:
        scale: initial value, > 0.
        bias: initial value.
        learnable: log_scale and bias are parameters; otherwise buffers of the same names.
        gather: where several processes run, take the rows of all as candidates; forward is then a collective call,
            which every process of the group has to make. If you gather rows yourself, pass gather=False.
        group: whose rows; None takes the default process group, if one is initialised when the loss is called. Copies
            have the same group; with one the loss cannot be pickled.
        equal_rows: every rank holds equally many rows (a sampler that pads or drops the rest sees to that).
        backend: as in `sigmoid_loss`.

    Raises:
        TypeError: `scale` or `bias` is no number, a flag no bool, or `group` no process group.
        ValueError: `scale` is not positive and finite, `bias` not finite, `backend` is unknown, this process is not a
            member of `group`, or `group` comes with gather=False.
    """

    log_scale: Tensor
    bias: Tensor

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        *,
        learnable: bool = True,
        gather: bool = True,
        group: dist.ProcessGroup | None = None,
        equal_rows: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(gather, group, equal_rows)
        check_positive_number("scale", scale)
        check_number("bias", bias)
        check_finite("bias", bias)
        check_pair_backend(backend)
        self.learnable = validate.flag("learnable", learnable)
        self.backend = backend
        for name, value in (("log_scale", math.log(scale)), ("bias", bias)):
            initial = torch.tensor(float(value))
            if learnable:
                self.register_parameter(name, nn.Parameter(initial))
            else:
                self.register_buffer(name, initial)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of two sides' rows; see `sigmoid_loss`.

        Args:
            z1: [N, D].
            z2: [N, D].

        Returns:
            A 0-d tensor.
        """
        return sigmoid_loss(
            z1,
            z2,
            scale=self.log_scale.exp(),
            bias=self.bias,
            group=self.joint_group(),
            equal_rows=self.equal_rows,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The settings, for `repr`; scale and bias may be on a GPU, which would have to be waited for."""
        return f"learnable={self.learnable}, gather={self.gather}, equal_rows={self.equal_rows}"
