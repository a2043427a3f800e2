"""Sinkhorn's iterations over the rows of two gloo processes: every rank gets its rows of the joint batch's codes."""

from __future__ import annotations

import copy

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ldreg_kernels.losses import SwAVLoss, sinkhorn, swav_loss

SUMS = 1e-12  # float64 sums of some dozens of terms, in another order


def rows(b: int, k: int, seed: int) -> Tensor:
    return 2 * torch.rand(b, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def codes_are_those_of_the_joint_batch() -> None:
    """Also where ranks hold different numbers of rows, or none."""
    rank = dist.get_rank()
    for counts in ((4, 4), (5, 2), (0, 3), (3, 0)):
        everyone = [rows(b, 6, seed) for seed, b in enumerate(counts)]
        joint = sinkhorn(torch.cat(everyone))
        ours = sinkhorn(everyone[rank], group=dist.group.WORLD)
        torch.testing.assert_close(ours, joint.split(counts)[rank], rtol=SUMS, atol=1e-15)


def large_scores_of_one_rank_do_not_overflow() -> None:
    scores = rows(4, 3, dist.get_rank()).half() - dist.get_rank()
    codes = sinkhorn(scores, epsilon=1e-3, group=dist.group.WORLD)
    assert bool(codes.isfinite().all())
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(4), rtol=1e-6, atol=0)


def the_mean_over_ranks_is_the_joint_loss() -> None:
    """Of equally many rows, in value and in the gradients that DDP averages; queues of each rank its own."""
    rank, group = dist.get_rank(), dist.group.WORLD
    scores = [[rows(3, 5, 10 * r + v).requires_grad_() for v in range(3)] for r in range(2)]
    queues = [[rows(2 + 3 * r, 5, 100 * r + v) for v in range(2)] for r in range(2)]
    loss = swav_loss(scores[rank], queue_scores=queues[rank], group=group)
    mine = torch.autograd.grad(loss, scores[rank])
    mean = loss.detach().clone()
    dist.all_reduce(mean)

    parts = []  # what each rank's rows add to the loss, their codes those of all rows and queues
    joint = [sinkhorn(torch.cat([queues[0][a], scores[0][a], queues[1][a], scores[1][a]])) for a in range(2)]
    own = [[q[2:5] for q in joint], [q[10:] for q in joint]]
    for r in range(2):
        terms = [
            -(own[r][a] * (scores[r][v] / 0.1).log_softmax(dim=1)).sum() / 3
            for a in range(2)
            for v in range(3)
            if v != a
        ]
        parts.append(sum(terms) / 4)
    truth = sum(parts) / 2
    assert mean.item() / 2 == pytest.approx(truth.item(), rel=SUMS)
    for ours, theirs in zip(mine, torch.autograd.grad(truth, scores[rank]), strict=True):
        torch.testing.assert_close(ours / 2, theirs, rtol=1e-10, atol=1e-14)


def only_who_is_asked_to_gathers() -> None:
    """The function with a group, the module unless it is told not to; copies have the same group."""
    scores = [rows(4, 5, 10 * dist.get_rank() + v) for v in range(2)]
    alone, together = swav_loss(scores), swav_loss(scores, group=dist.group.WORLD)
    assert abs(alone.item() - together.item()) > 1e-3
    assert torch.equal(SwAVLoss(gather=False)(scores), alone)
    for module in (SwAVLoss(), copy.deepcopy(SwAVLoss(group=dist.group.WORLD))):
        assert torch.equal(module(scores), together)
    groups = [dist.new_group([rank]) for rank in range(2)]
    assert torch.equal(SwAVLoss(group=groups[dist.get_rank()])(scores), alone)
    with pytest.raises(ValueError, match="group must be a process group that this process is a member of"):
        sinkhorn(scores[0], group=groups[1 - dist.get_rank()])


CHECKS = [
    codes_are_those_of_the_joint_batch,
    large_scores_of_one_rank_do_not_overflow,
    the_mean_over_ranks_is_the_joint_loss,
    only_who_is_asked_to_gathers,
]


test_in_two_processes = processes.tests_of(CHECKS, 2)
