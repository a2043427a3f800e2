"""InfoNCE, the contrastive loss of MoCo: a query has to find its key among other keys.

With s_ij = cos(q_i, k_j), the loss of a query is a cross-entropy, in the batch (MoCo v3) or against a queue (MoCo v2):

    l_i = -s_ii / t + ln sum_j exp(s_ij / t)                              all keys j of the batch
    l_i = -s_ii / t + ln [ exp(s_ii / t) + sum_r exp(cos(q_i, c_r) / t) ]   key i and the rows c_r of a queue

Both are ln(1 + exp(n_i - s_ii / t)), n_i the logarithm of the sum over the negatives alone (ops/pairs.py): no logits
are kept, and small losses keep all their digits.

What this file does not do: keep a queue or a momentum encoder up to date.
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
    check_positive_number,
    check_rows,
    check_temperature,
    scale_of,
    working_dtype,
)
from .cosine import half_rows, unit_rows
from .gathering import ContrastiveLoss, candidates_of


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.2,
    base_temperature: float | None = None,
    group: dist.ProcessGroup | None = None,
    equal_rows: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy of every query's own key among keys, in one direction.

    L = (1/N) sum_i [ -s_ii/t + ln sum_j exp(s_ij/t) ], s_ij = cos(q_i, k_j). Without `negatives`, j runs over the
    batch's keys (Chen, Xie, He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", equation 1
    and Algorithm 1); queries are no candidates. MoCo v3 adds two directions:

        info_nce_loss(q1, k2, base_temperature=0.5) + info_nce_loss(q2, k1, base_temperature=0.5)

    With `negatives`, j runs over key i and the rows of the queue, and the batch's other keys are no candidates (He et
    al. 2020, "Momentum Contrast", equation 1 and Algorithm 1; MoCo v2 is the same).

    Gradients reach whatever requires grad, so detach what is constant: keys and queue, in MoCo. With gradient in both,
    half the sum of both directions is CLIP's loss.

    Other code: MoCo v3 multiplies by 2t, which is `base_temperature=0.5`. MoCo v1 and v2 keep their queue transposed,
    [D, K]: pass `queue.T`. CLIP's `logit_scale` is 1/t.

    At collapse (all rows equal) the loss is ln N, or ln(1 + K) against a queue of K rows, and its gradient is 0, as
    wherever all rows lie on one line through 0 (rank 1). A zero row has cosine 0 and gradient 0.

    With `group` the keys of all W ranks are candidates, and rank r returns the part of its own queries,

        L_r = W / (sum_q N_q) sum_{i of rank r} l_i,        (1/W) sum_r L_r = L of the joint batch,

    so the mean of gradients that DDP makes is the gradient of the joint loss, keys that require grad included; forward
    is a collective call, and so is backward for such keys. Beside a queue, which is each rank's own, only the numbers
    of rows are exchanged.

    Args:
        query: [N, D], any floating dtype, not necessarily normalised.
        key: [N, D]; row i is the positive of query i.
        negatives: a queue, [K, D] with K >= 1, not necessarily normalised.
        temperature: t > 0, no unit. 0.2 in MoCo v2 and in MoCo v3 with a ViT, 1 in MoCo v3 with a ResNet-50, 0.07 in
            MoCo v1. A tensor (0-d) may be learned; its value is not looked at, and has to stay positive.
        base_temperature: multiplies the loss by t / base_temperature, so that gradients keep their size when t changes
            (the name is SupCon's, Khosla et al. 2020); None does not. Not for a learned t, which it draws to 0.
        group: the process group whose keys are gathered. None gathers nothing, whatever is initialised.
        equal_rows: every rank of `group` holds equally many rows, which then is not asked for; asking makes a GPU's
            host wait for the device.
        backend: auto, reference, cpu or triton. float64 is the reference's.

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64; under autocast,
        several dtypes (a queue in float32) in the widest.

    Raises:
        TypeError: an input is not a floating point tensor, dtypes differ outside of autocast, or `temperature` or
            `base_temperature` is no number.
        ValueError: shapes differ or are not [N, D], no negatives exist (N < 2 over all ranks and no queue), N < 1
            beside a queue, a temperature is not positive or not 0-d, `backend` is unknown, this process is not a member
            of `group`, or its ranks disagree in D, in dtype, or in whether `key` requires grad.
    """
    check_rows("query", query)
    check_rows("key", key)
    check_like("key", key, "query", query)
    if negatives is not None:
        check_bank("negatives", negatives, "query", query)
    check_temperature(temperature, query)
    _check_base(base_temperature)
    check_pair_backend(backend)
    validate.flag("equal_rows", equal_rows)
    dtype = working_dtype("query", query, key=key, negatives=negatives)
    with torch.autocast(query.device.type, enabled=False):
        loss = cross_entropy_of_keys("query", query, key, negatives, temperature, dtype, group, equal_rows, backend)
        return loss if base_temperature is None else loss / (scale_of(temperature, loss) * base_temperature)


def cross_entropy_of_keys(
    name: str,
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    dtype: torch.dtype,
    group: dist.ProcessGroup | None,
    equal_rows: bool,
    backend: str,
) -> Tensor:
    """Mean over the queries of all ranks, this rank's part, computed in `dtype`; `name` is the queries' in messages."""
    queries, keys = unit_rows(query.to(dtype)), unit_rows(key.to(dtype))
    mine = keys if negatives is None else keys.detach()[:, :0]  # beside a queue, only how many there are
    fewest = 2 if negatives is None else 1
    candidates, offset, weight = candidates_of(name, mine, group, equal_rows=equal_rows, fewest=fewest)
    scale, half = scale_of(temperature, queries), half_rows(key, backend) if candidates is mine else None
    if negatives is not None:
        candidates, half = unit_rows(negatives.to(dtype)), half_rows(negatives, backend)
    others = row_logsumexp(  # [N]
        queries,
        candidates,
        scale=scale,
        own=offset if negatives is None else None,
        x_half=half_rows(query, backend),
        y_half=half,
        backend=backend,
    )
    positive = scale * (queries * keys).sum(dim=1)  # [N]
    return weight * torch.logaddexp(others - positive, scale.new_zeros(())).sum()


class InfoNCELoss(ContrastiveLoss):
    """`info_nce_loss` with its settings kept: the mean of -s_ii/t + ln sum_j exp(s_ij/t) (MoCo v2 and v3).

    Args:
        temperature: t > 0, no unit; a number, or a 0-d tensor, of which a Parameter becomes one of this module.
        base_temperature: as in `info_nce_loss`; 0.5 is MoCo v3's factor 2t.
        gather: where several processes run, take the keys of all as candidates; forward is then a collective call,
            which every process of the group has to make. If you gather keys yourself, pass gather=False.
        group: whose keys; None takes the default process group, if one is initialised when the loss is called. Copies
            have the same group; with one the loss cannot be pickled.
        equal_rows: every rank holds equally many rows (a sampler that pads or drops the rest sees to that).
        backend: as in `info_nce_loss`.

    Raises:
        TypeError: a temperature is no number, a flag no bool, or `group` no process group.
        ValueError: a temperature is not positive and finite or not 0-d, `backend` is unknown, this process is not a
            member of `group`, or `group` comes with gather=False.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.2,
        *,
        base_temperature: float | None = None,
        gather: bool = True,
        group: dist.ProcessGroup | None = None,
        equal_rows: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, gather, group, equal_rows, backend)
        _check_base(base_temperature)
        self.base_temperature = base_temperature

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Loss of queries and their keys; see `info_nce_loss`.

        Args:
            query: [N, D].
            key: [N, D].
            negatives: a queue, [K, D], or None.

        Returns:
            A 0-d tensor.
        """
        return info_nce_loss(query, key, negatives, base_temperature=self.base_temperature, **self.settings())

    def extra_repr(self) -> str:
        """The settings, for `repr`."""
        base = "" if self.base_temperature is None else f"base_temperature={self.base_temperature}, "
        return base + super().extra_repr()


def _check_base(base_temperature: float | None) -> None:
    if base_temperature is not None:
        check_positive_number("base_temperature", base_temperature)
