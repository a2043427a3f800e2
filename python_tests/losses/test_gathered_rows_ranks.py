"""KoLeo and SIGReg on the rows of two gloo processes: gathered first, DDP's mean of gradients is the joint batch's."""

from __future__ import annotations

from collections.abc import Callable

import processes
import torch
import torch.distributed as dist
from torch import Tensor

from ldreg_kernels.losses import koleo_loss, sigreg_loss
from ldreg_kernels.ops.gather import gather_rows


def check_joint(loss: Callable[[Tensor], Tensor]) -> None:
    """Also where ranks hold different numbers of rows."""
    rank = dist.get_rank()
    for counts in ((4, 4), (5, 2)):
        everyone = [
            torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed, n in enumerate(counts)
        ]
        x = everyone[rank].clone().requires_grad_()
        ours = loss(gather_rows(x).rows)
        ours.backward()
        joint = torch.cat(everyone).requires_grad_()
        theirs = loss(joint)
        theirs.backward()
        assert torch.equal(ours, theirs)
        # float64 gradients of two ranks, added
        torch.testing.assert_close(x.grad / 2, joint.grad.split(counts)[rank], rtol=1e-12, atol=1e-14)


def koleo_of_gathered_rows_is_joint() -> None:
    check_joint(lambda x: koleo_loss(x, topk=2))


def sigreg_of_gathered_rows_is_joint() -> None:
    check_joint(lambda x: sigreg_loss(x, directions=8, generator=torch.Generator().manual_seed(5)))


CHECKS = [koleo_of_gathered_rows_is_joint, sigreg_of_gathered_rows_is_joint]


test_in_two_processes = processes.tests_of(CHECKS, 2)
