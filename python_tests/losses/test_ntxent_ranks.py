"""NT-Xent over the rows of two gloo processes: the mean over ranks is the loss of one process with all images."""

from __future__ import annotations

import processes
import pytest
import torch
import torch.distributed as dist
from ntxent_loops import loop_nt_xent, loop_rows, views
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldreg_kernels.losses import NTXentLoss, nt_xent_loss

SUMS = 1e-12  # float64 sums of some dozens of terms, in another order
SUMS_FLOAT32 = 1e-6  # the same in float32, whose rounding is 6e-8


def joint(counts: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """The two views that each rank holds."""
    return [views(n, 4, seed=rank, dtype=dtype) for rank, n in enumerate(counts)]


def check_two_ranks(counts: tuple[int, int], tolerance: float, dtype: torch.dtype = torch.float64, **options) -> None:
    """The mean over ranks is the loss of one process with all images, and so are the gradients that DDP averages."""
    rank = dist.get_rank()
    everyone = joint(counts, dtype)
    z1, z2 = (z.requires_grad_() for z in everyone[rank])
    loss = nt_xent_loss(z1, z2, temperature=0.2, group=dist.group.WORLD, **options)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    leaves = [tuple(z.detach().clone().requires_grad_() for z in pair) for pair in everyone]
    truth = nt_xent_loss(torch.cat([a for a, _ in leaves]), torch.cat([b for _, b in leaves]), temperature=0.2)
    truth.backward()
    assert mean.item() / 2 == pytest.approx(truth.item(), rel=tolerance)
    for ours, theirs in zip((z1, z2), leaves[rank], strict=True):
        torch.testing.assert_close(ours.grad / 2, theirs.grad, rtol=tolerance, atol=tolerance)


def two_ranks_equal_one_process() -> None:
    check_two_ranks((3, 3), SUMS)
    check_two_ranks((3, 3), SUMS, equal_rows=True)
    check_two_ranks((1, 1), SUMS)


def two_ranks_in_float32() -> None:
    check_two_ranks((8, 8), SUMS_FLOAT32, torch.float32)


def uneven_ranks_equal_one_process() -> None:
    check_two_ranks((5, 2), SUMS)
    check_two_ranks((1, 2), SUMS)
    check_two_ranks((0, 3), SUMS)


def equal_ranks_return_the_mean_of_their_own_rows() -> None:
    rank, everyone = dist.get_rank(), joint((3, 3))
    loss = nt_xent_loss(*everyone[rank], temperature=0.2, group=dist.group.WORLD)
    z1, z2 = (torch.cat(z) for z in zip(*everyone, strict=True))
    terms = loop_rows(z1, z2, 0.2, [z1[:0]] * 12)
    own = [terms[i] for i in range(12) if i % 6 // 3 == rank]
    assert loss.item() == pytest.approx(sum(own).item() / 6, rel=SUMS)


def a_bank_is_its_ranks_own() -> None:
    """Different banks on the two ranks, K = 2 and 5, against the double loop, in value and gradient."""
    rank, everyone, temperature = dist.get_rank(), joint((2, 3)), 0.4
    banks = [views(k, 4, seed=7)[0] for k in (2, 5)]
    z1, z2 = (z.requires_grad_() for z in everyone[rank])
    loss = nt_xent_loss(z1, z2, temperature=temperature, negatives=banks[rank], group=dist.group.WORLD)
    loss.backward()
    leaves = [tuple(z.detach().clone().requires_grad_() for z in pair) for pair in everyone]
    all1, all2 = (torch.cat(z) for z in zip(*leaves, strict=True))
    terms = loop_rows(all1, all2, temperature, [banks[0] if i % 5 < 2 else banks[1] for i in range(10)])
    own = sum(terms[i] for i in range(10) if (i % 5 >= 2) == (rank == 1))
    assert loss.item() == pytest.approx(own.item() * 2 / 10, rel=SUMS)
    (sum(terms) / 10).backward()
    for ours, theirs in zip((z1, z2), leaves[rank], strict=True):
        torch.testing.assert_close(ours.grad / 2, theirs.grad, rtol=1e-11, atol=1e-14)


def half_precision_rows() -> None:
    rank, everyone = dist.get_rank(), joint((3, 3), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent_loss(*everyone[rank], temperature=0.2, group=dist.group.WORLD)
    dist.all_reduce(loss)
    z1, z2 = (torch.cat(z) for z in zip(*everyone, strict=True))
    assert loss.item() / 2 == pytest.approx(loop_nt_xent(z1, z2, 0.2), rel=SUMS_FLOAT32)


def only_who_is_asked_to_gathers() -> None:
    """The function with a group, the module unless it is told not to."""
    z1, z2 = joint((3, 3))[dist.get_rank()]
    alone, together = nt_xent_loss(z1, z2), nt_xent_loss(z1, z2, group=dist.group.WORLD)
    assert alone.item() == pytest.approx(loop_nt_xent(z1, z2, 0.1), rel=SUMS)
    assert abs(alone.item() - together.item()) > 1e-3
    assert torch.equal(NTXentLoss(gather=False)(z1, z2), alone)
    for module in (NTXentLoss(), NTXentLoss(group=dist.group.WORLD), NTXentLoss(equal_rows=True)):
        assert torch.equal(module(z1, z2), together)
    groups = [dist.new_group([rank]) for rank in range(2)]
    assert torch.equal(NTXentLoss(group=groups[dist.get_rank()])(z1, z2), alone)


def one_image_in_all_is_refused_by_every_rank() -> None:
    z1, z2 = joint((1, 0))[dist.get_rank()]
    with pytest.raises(ValueError, match="z1 must have at least 2 rows over all ranks of the group, so that"):
        nt_xent_loss(z1, z2, group=dist.group.WORLD)


def ranks_that_disagree_are_told_so() -> None:
    z = torch.ones(2, 3 + dist.get_rank())
    with pytest.raises(ValueError, match="same number of features and dtype on every rank"):
        nt_xent_loss(z, z, group=dist.group.WORLD)


def ddp_trains_on_the_joint_loss() -> None:
    """Parameter gradients of DDP, uneven ranks, against one process with all images."""
    torch.manual_seed(5)
    alone = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)).double()
    ddp = DistributedDataParallel(alone)
    everyone, criterion = joint((3, 2)), NTXentLoss(temperature=0.2)
    z1, z2 = ddp(torch.cat(everyone[dist.get_rank()])).chunk(2)
    criterion(z1, z2).backward()
    gradients = [p.grad.clone() for p in alone.parameters()]
    alone.zero_grad()
    x1, x2 = (torch.cat(z) for z in zip(*everyone, strict=True))
    nt_xent_loss(alone(x1), alone(x2), temperature=0.2).backward()
    for ours, parameter in zip(gradients, alone.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=SUMS, atol=SUMS)


CHECKS = [
    two_ranks_equal_one_process,
    two_ranks_in_float32,
    uneven_ranks_equal_one_process,
    equal_ranks_return_the_mean_of_their_own_rows,
    a_bank_is_its_ranks_own,
    half_precision_rows,
    only_who_is_asked_to_gathers,
    one_image_in_all_is_refused_by_every_rank,
    ranks_that_disagree_are_told_so,
    ddp_trains_on_the_joint_loss,
]


test_in_two_processes = processes.tests_of(CHECKS, 2)
