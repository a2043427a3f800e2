"""SwAV's loss: the codes of one crop, balanced over the batch by Sinkhorn's iterations, predicted from the other crops.

With s = z-hat . c the scores of an embedding against K prototypes, q the codes of a crop and t the temperature,

    L = mean over assigning crops a of mean over other crops v of -(1/B) sum_b sum_k q_a[b, k] ln softmax(s_v[b] / t)[k]

What this file does not do: hold the prototypes and keep them at length 1, make the scores, or keep a queue of
embeddings. All three are the model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ..ops import validate
from ..ops.gather import gather_rows, several_processes
from .checks import (
    check_device,
    check_like,
    check_positive_number,
    check_rows,
    check_temperature,
    scale_of,
    shown_temperature,
    working_dtype,
)
from .gathering import GatheringLoss


def sinkhorn(
    scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Soft assignments of rows to prototypes that use every prototype (nearly) equally.

    Q = exp(scores / epsilon), and `iterations` times, in this order: every prototype's sum over the batch is scaled to
    1/K, then every row's sum over prototypes to 1/B; in the end times B  (Caron et al. 2020, "Unsupervised Learning of
    Visual Features by Contrasting Cluster Assignments", section 3.1; Cuturi 2013). So rows sum to 1, and prototypes to
    B/K only as the iterations converge. Both factors cancel: each step undoes the constants of the last.

    It is computed on logarithms. The published code exponentiates, which overflows float16 beyond scores / epsilon = 11
    and float32 beyond 88, and divides 0 by 0 where a whole prototype underflows.

    With `group` the batch is that of all its ranks, which may hold different numbers of rows, also none; one collective
    call with K numbers per rank in every iteration.

    Args:
        scores: [B, K], any floating dtype; cosines in SwAV.
        epsilon: the entropy's weight, > 0, in units of the scores: smaller is harder.
        iterations: at least 1.
        group: whose rows make up the batch; None takes those of this process. All ranks have the same K and dtype.

    Returns:
        Q [B, K], this rank's rows, constant (no gradient); float32, or float64 for float64 scores. A score that is NaN
        or +Inf shows as NaN.

    Raises:
        TypeError: `scores` is not a floating point tensor, `epsilon` is no number, `iterations` no int, or `group` no
            process group.
        ValueError: `scores` is not [B, K] with K >= 1, `epsilon` is not positive and finite, `iterations` < 1, or this
            process is not a member of `group`.
    """
    check_rows("scores", scores)
    check_positive_number("epsilon", epsilon)
    validate.at_least("iterations", iterations, 1)
    several = group is not None and several_processes(group)
    with torch.no_grad(), torch.autocast(scores.device.type, enabled=False):
        logs = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon  # [B, K] ln Q
        for _ in range(iterations):
            prototypes = logs.logsumexp(dim=0, keepdim=True)  # [1, K]
            if several:  # the sum over ranks of their sums, again by its logarithm
                parts, _ = gather_rows(prototypes, group, equal_rows=True)  # [W, K]
                prototypes = parts.logsumexp(dim=0, keepdim=True)
            logs = (logs - prototypes).log_softmax(dim=1)
        return logs.exp()


def swav_loss(
    scores: Sequence[Tensor],
    *,
    temperature: float | Tensor = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    assign_crops: Sequence[int] = (0, 1),
    queue_scores: Sequence[Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Cross-entropy between the codes of some crops and the predictions of all others (swapped prediction).

    L = (1/|A|) sum_{a in A} (1/(V-1)) sum_{v != a} -(1/B) sum_b sum_k q_a[b, k] ln softmax(s_v[b] / t)[k]
    with q_a = sinkhorn(s_a / epsilon), constant, of V crops (Caron et al. 2020, equations 1 and 2, section 3.2). Two
    crops, both assigning, are the paper's equation 1 divided by 2, which is what the published code computes too.

    Scores are z-hat . c with z-hat and the prototypes c at length 1, *before* the temperature. They are taken as they
    are: nothing is normalised here, a row of zeros is a uniform prediction.

    At full collapse (all rows of scores equal) the codes are 1/K each, the loss is at least ln K, and all rows have the
    same gradient, towards scores that are equal for all prototypes: nothing pulls rows apart.

    Under DDP, which averages gradients, with `group` it is the loss of the joint batch where ranks hold equally many
    rows; otherwise every rank counts the same, however many it holds. Without, every rank balances its own rows, which
    are too few wherever B is not well above K.

    Args:
        scores: one [B, K] for each crop, V >= 2 of them, any floating dtype, the same of all; row b of all shows image
            b.
        temperature: t > 0, no unit, of the predictions. A tensor (0-d) may be learned; its value is not looked at, and
            has to stay positive.
        epsilon: as in `sinkhorn`, for the codes.
        iterations: as in `sinkhorn`.
        assign_crops: A, the places in `scores` of the crops that codes are made of; the large ones, in the paper.
        queue_scores: for each assigning crop the scores [Q, K] of queued embeddings, against the present prototypes, or
            None. They come before the batch when codes are made, and nowhere else: with few rows a batch alone cannot
            be balanced.
        group: whose rows (and queues) make up the batch that is balanced; None takes those of this process.

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64; under autocast,
        several dtypes in the widest.

    Raises:
        TypeError: `scores`, `assign_crops` or `queue_scores` is no sequence, an element is of the wrong type or dtype,
            a number is none, or `group` is no process group.
        ValueError: shapes differ or are not [B, K] with B >= 1, fewer than 2 crops, an assigning crop that does not
            exist or is named twice, another number of queues than of assigning crops, a number out of its range, or
            this process is not a member of `group`.
    """
    scores, crops = _list("scores", scores), _list("assign_crops", assign_crops)
    queues = None if queue_scores is None else _list("queue_scores", queue_scores)
    dtype = _check(scores, crops, queues)
    check_temperature(temperature, scores[0])
    with torch.autocast(scores[0].device.type, enabled=False):
        scores = [crop.to(dtype) for crop in scores]
        scale = scale_of(temperature, scores[0])
        predictions = [F.log_softmax(crop * scale, dim=1) for crop in scores]  # V of [B, K]
        total = scores[0].new_zeros(())
        for place, a in enumerate(crops):
            batch = scores[a].detach()
            joined = batch if queues is None else torch.cat([queues[place].detach().to(dtype), batch])
            codes = sinkhorn(joined, epsilon=epsilon, iterations=iterations, group=group)[-batch.shape[0] :]  # [B, K]
            for v, prediction in enumerate(predictions):
                if v != a:
                    total = total - (codes * prediction).sum()
        return total / (len(crops) * (len(scores) - 1) * scores[0].shape[0])


class SwAVLoss(GatheringLoss):
    """`swav_loss` with its settings kept (SwAV, equations 1 and 2).

    Args:
        temperature: t > 0, no unit; a number, or a 0-d tensor, of which a Parameter becomes one of this module.
        epsilon: > 0, in units of the scores.
        iterations: at least 1.
        assign_crops: the places of the crops that codes are made of.
        gather: where several processes run, balance over the rows of all; forward is then a collective call, which
            every process of the group has to make. The function does so only if it is given a group.
        group: whose rows; None takes the default process group, if one is initialised when the loss is called. Copies
            have the same group; with one the loss cannot be pickled.

    Raises:
        TypeError, ValueError: a bad setting, by name, as in `swav_loss`; or `group` comes with gather=False.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        epsilon: float = 0.05,
        iterations: int = 3,
        assign_crops: Sequence[int] = (0, 1),
        gather: bool = True,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather, group, equal_rows=False)  # of no account: numbers of rows are not asked for
        check_temperature(temperature)
        check_positive_number("epsilon", epsilon)
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = validate.at_least("iterations", iterations, 1)
        self.assign_crops = tuple(_crops(_list("assign_crops", assign_crops)))

    def forward(self, scores: Sequence[Tensor], queue_scores: Sequence[Tensor] | None = None) -> Tensor:
        """Loss of the scores of several crops; see `swav_loss`.

        Args:
            scores: one [B, K] for each crop.
            queue_scores: one [Q, K] for each assigning crop, or None.

        Returns:
            A 0-d tensor.
        """
        return swav_loss(
            scores,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            assign_crops=self.assign_crops,
            queue_scores=queue_scores,
            group=self.joint_group(),
        )

    def extra_repr(self) -> str:
        """The settings, for `repr`; a group has no name that says anything."""
        return (
            f"temperature={shown_temperature(self.temperature)}, epsilon={self.epsilon}, iterations={self.iterations}, "
            f"assign_crops={self.assign_crops}, gather={self.gather}"
        )


def _list(name: str, values: Sequence) -> list:
    """A list or tuple, not a tensor, whose first dimension may be anything."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list or tuple, got {type(values).__name__}")
    return list(values)


def _crops(crops: list[int]) -> list[int]:
    """At least one place, none of them twice or negative."""
    crops = [validate.at_least("assign_crops", crop, 0) for crop in crops]
    if not crops or len(set(crops)) < len(crops):
        raise ValueError(f"assign_crops must name at least one crop, and each once, got {crops}")
    return crops


def _check(scores: list[Tensor], crops: list[int], queues: list[Tensor] | None) -> torch.dtype:
    """Crops and queues that fit each other; the dtype to compute in."""
    if len(scores) < 2:
        raise ValueError(f"scores must hold at least 2 crops, got {len(scores)}")
    names = [f"scores[{v}]" for v in range(len(scores))]
    for name, crop in zip(names, scores, strict=True):
        check_rows(name, crop)
        check_like(name, crop, names[0], scores[0])
    if scores[0].shape[0] < 1:
        raise ValueError("scores[0] must have at least 1 row, got 0")
    if max(_crops(crops)) >= len(scores):
        raise ValueError(f"assign_crops must be in [0, {len(scores) - 1}] for {len(scores)} crops, got {max(crops)}")
    others = dict(zip(names[1:], scores[1:], strict=True))
    if queues is not None:
        if len(queues) != len(crops):
            raise ValueError(f"queue_scores must hold one tensor for each of {len(crops)} crops, got {len(queues)}")
        for i, queue in enumerate(queues):
            check_rows(f"queue_scores[{i}]", queue)
            if queue.shape[1] != scores[0].shape[1]:
                expected = f"[Q, {scores[0].shape[1]}], the K of scores"
                raise ValueError(f"queue_scores[{i}] must have shape {expected}, got {list(queue.shape)}")
            check_device(f"queue_scores[{i}]", queue, names[0], scores[0])
            others[f"queue_scores[{i}]"] = queue
    return working_dtype(names[0], scores[0], **others)
