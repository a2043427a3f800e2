"""Contrastive losses over the rows of two gloo processes: the mean over ranks is the loss of one with all rows."""

from __future__ import annotations

from collections.abc import Callable

import processes
import pytest
import torch
import torch.distributed as dist
from contrastive_loops import loop_info_nce, loop_nnclr, loop_sigmoid, mean, rows
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldreg_kernels.losses import (
    InfoNCELoss,
    NNCLRLoss,
    SigmoidLoss,
    SupportQueue,
    info_nce_loss,
    nnclr_loss,
    sigmoid_loss,
    uniformity_loss,
)
from ldreg_kernels.ops.gather import gather_rows

SUMS = 1e-12  # float64 sums of some dozens of terms, in another order
COUNTS = [(3, 3), (4, 2), (0, 3)]


def joint(counts: tuple[int, ...], batches: int) -> list[list[Tensor]]:
    """What each rank holds; the same on all."""
    return [rows(batches, n, 4, seed=rank) for rank, n in enumerate(counts)]


def check(loss: Callable[..., Tensor], terms: Callable[..., list[Tensor]], counts: tuple[int, int], grads: str) -> None:
    """Value and gradients by `grads`, one letter a batch, against the mean of the joint batch's terms."""
    rank, everyone = dist.get_rank(), joint(counts, len(grads))
    batches = [z.requires_grad_(g == "g") for z, g in zip(everyone[rank], grads, strict=True)]
    number = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    value = loss(*batches, number)
    value.backward()
    total = torch.stack([value.detach(), number.grad])
    dist.all_reduce(total)

    leaves = [[z.detach().clone().requires_grad_(g == "g") for z, g in zip(b, grads, strict=True)] for b in everyone]
    same = number.detach().clone().requires_grad_()
    each = terms(*(torch.cat(z) for z in zip(*leaves, strict=True)), same)
    truth = mean(each)
    truth.backward()
    own = each[: counts[0]] if rank == 0 else each[counts[0] :]
    # W / (sum_q N_q) times the sum of this rank's terms.
    assert value.item() == pytest.approx(sum(float(term.detach()) for term in own) * 2 / sum(counts), rel=SUMS)
    assert (total / 2).tolist() == pytest.approx([truth.item(), same.grad.item()], rel=1e-11)
    for ours, theirs, grad in zip(batches, leaves[rank], grads, strict=True):
        if grad == "g":
            torch.testing.assert_close(ours.grad / 2, theirs.grad, rtol=1e-11, atol=SUMS)
        else:
            assert ours.grad is None


def info_nce_equals_one_process() -> None:
    """With gradient in the keys and, as in MoCo v3, without."""
    for counts in COUNTS:
        for grads in ("gg", "g-"):
            check(
                lambda q, k, t, equal=counts == (3, 3): info_nce_loss(
                    q, k, temperature=t, group=dist.group.WORLD, equal_rows=equal
                ),
                loop_info_nce,
                counts,
                grads,
            )


def info_nce_beside_a_queue_equals_one_process() -> None:
    """The same queue on both ranks; keys of other ranks are no candidates, so a rank may have one row."""
    bank = rows(1, 5, 4, seed=9)[0]
    for counts in (*COUNTS, (0, 1)):
        check(
            lambda q, k, t: info_nce_loss(q, k, bank, temperature=t, group=dist.group.WORLD),
            lambda q, k, t: loop_info_nce(q, k, t, bank),
            counts,
            "gg",
        )


def nnclr_equals_one_process() -> None:
    for counts in COUNTS:
        check(
            lambda a, b, p1, p2, t: nnclr_loss(a, b, p1, p2, temperature=t, group=dist.group.WORLD),
            loop_nnclr,
            counts,
            "--gg",
        )


def sigmoid_equals_one_process() -> None:
    for counts in COUNTS:
        check(
            lambda a, b, t: sigmoid_loss(a, b, scale=1 / t, bias=-3 * t, group=dist.group.WORLD),
            lambda a, b, t: loop_sigmoid(a, b, 1 / t, -3 * t),
            counts,
            "gg",
        )


def uniformity_of_gathered_rows_equals_one_process() -> None:
    """The way that its docstring has."""
    rank, everyone = dist.get_rank(), joint((4, 2), 1)
    x = everyone[rank][0].requires_grad_()
    loss = uniformity_loss(gather_rows(x).rows)
    loss.backward()
    leaves = [z.detach().clone().requires_grad_() for (z,) in everyone]
    truth = uniformity_loss(torch.cat(leaves))
    truth.backward()
    assert loss.item() == pytest.approx(truth.item(), rel=SUMS)
    torch.testing.assert_close(x.grad / 2, leaves[rank].grad, rtol=1e-11, atol=SUMS)


def modules_gather_unless_told_not_to() -> None:
    batches = joint((3, 3), 4)[dist.get_rank()]
    makers = [
        (InfoNCELoss, info_nce_loss, 2, {"temperature": 0.2}),
        (NNCLRLoss, nnclr_loss, 4, {"temperature": 0.1}),
        (SigmoidLoss, sigmoid_loss, 2, {"scale": 10, "bias": -10}),
    ]
    for module, function, count, options in makers:
        z = batches[:count]
        alone, together = function(*z, **options), function(*z, **options, group=dist.group.WORLD)
        assert abs(alone.item() - together.item()) > 1e-3
        # SigmoidLoss has the logarithm of its scale in float32.
        assert module(gather=False)(*z).item() == pytest.approx(alone.item(), rel=1e-6)
        for loss in (module(), module(group=dist.group.WORLD), module(equal_rows=True)):
            assert loss(*z).item() == pytest.approx(together.item(), rel=1e-6)


def too_few_rows_are_refused_by_every_rank() -> None:
    one, none = joint((1, 0), 2)[dist.get_rank()], rows(2, 0, 4)
    with pytest.raises(ValueError, match="query must have at least 2 rows over all ranks of the group, so that neg"):
        info_nce_loss(*one, group=dist.group.WORLD)
    with pytest.raises(ValueError, match="nn1 must have at least 2 rows over all ranks of the group, so that neg"):
        nnclr_loss(*one, *one, group=dist.group.WORLD)
    with pytest.raises(ValueError, match="query must have at least 1 row over all ranks of the group, got 0"):
        info_nce_loss(*none, torch.ones(2, 4, dtype=torch.float64), group=dist.group.WORLD)
    with pytest.raises(ValueError, match="z1 must have at least 1 row over all ranks of the group, got 0"):
        sigmoid_loss(*none, scale=1, bias=0, group=dist.group.WORLD)


def every_rank_has_the_same_queue() -> None:
    """Rows of rank 0 before those of rank 1, step by step, round the end."""
    queue, alone = SupportQueue(7, 4), SupportQueue(7, 4)
    for step, counts in enumerate([(3, 2), (0, 1), (4, 4)]):
        everyone = [rows(1, n, 4, seed=10 * step + rank)[0] for rank, n in enumerate(counts)]
        queue.enqueue(everyone[dist.get_rank()], group=dist.group.WORLD, equal_rows=counts == (4, 4))
        alone.enqueue(torch.cat(everyone))
        assert torch.equal(queue.rows, alone.rows)
        assert (queue.pointer, queue.filled) == (alone.pointer, alone.filled)


class Sides(nn.Module):
    """Two networks and the loss that they and its scale and bias learn from, as one module for DDP."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 5).double(), nn.Linear(4, 5).double()
        self.loss = SigmoidLoss()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.one(x), self.other(y))


def ddp_trains_on_the_joint_sigmoid_loss() -> None:
    """Gradients of the networks and of scale and bias, uneven ranks."""
    torch.manual_seed(5)
    alone = Sides()
    ddp, everyone = DistributedDataParallel(alone), joint((3, 2), 2)
    ddp(*everyone[dist.get_rank()]).backward()
    gradients = [p.grad.clone() for p in alone.parameters()]
    alone.zero_grad()
    alone.loss.gather = False
    alone(*(torch.cat(z) for z in zip(*everyone, strict=True))).backward()
    for ours, parameter in zip(gradients, alone.parameters(), strict=True):
        single = parameter.dtype == torch.float32  # scale and bias
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-6 if single else SUMS, atol=1e-7 if single else SUMS)


CHECKS = [
    info_nce_equals_one_process,
    info_nce_beside_a_queue_equals_one_process,
    nnclr_equals_one_process,
    sigmoid_equals_one_process,
    uniformity_of_gathered_rows_equals_one_process,
    modules_gather_unless_told_not_to,
    too_few_rows_are_refused_by_every_rank,
    every_rank_has_the_same_queue,
    ddp_trains_on_the_joint_sigmoid_loss,
]


test_in_two_processes = processes.tests_of(CHECKS, 2)
