"""Two gloo processes train as one does on the rows of both: raw DDP, Lightning, accelerate, transformers' Trainer.

`LDRegLoss` gathers by itself. Every function of `CHECKS` runs in each of two processes, all in one start; the test of
its name reports it. Which rows a rank takes is the client's affair.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings

import processes
import pytest
import torch
import torch.distributed as dist
from clients import runs
from clients.training import (
    BATCH,
    LAST,
    RATE,
    ROWS,
    SAME,
    Trained,
    Views,
    WithMomentum,
    assert_ldreg_mattered,
    assert_trained_alike,
    parameters,
    plain,
    regulariser,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


def joined(mine: Trained) -> Trained:
    """Both ranks' rows step by step, the means of their losses; their parameters are the same."""
    ranks: list[Trained] = [mine] * WORLD
    dist.all_gather_object(ranks, mine)
    for one, other in zip(ranks[0].parameters, ranks[1].parameters, strict=True):
        assert torch.equal(one, other)
    batches = [one + other for one, other in zip(*(rank.batches for rank in ranks), strict=True)]
    losses = [(one + other) / 2 for one, other in zip(*(rank.losses for rank in ranks), strict=True)]
    assert ranks[0].neighbours == ranks[1].neighbours
    return Trained(batches, losses, mine.neighbours, mine.parameters)


def as_torchrun_does() -> None:
    """The variables that clients read. Where to meet is asked for, and of no use: the group is there."""
    rank = str(dist.get_rank())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", TORCHELASTIC_RUN_ID="clients")


def check(client: str, last: int) -> None:
    """`last` more rows than two full batches on every rank; all rows are taken once."""
    rows = 2 * (2 * BATCH + last)
    as_torchrun_does()
    warnings.filterwarnings("error", module="ldreg_kernels")
    torch.manual_seed(5)
    with tempfile.TemporaryDirectory() as folder:
        mine = runs.CLIENTS[client](folder, data=Views(rows))
    assert [len(batch) for batch in mine.batches] == [BATCH, BATCH, last][: 3 if last else 2]
    found = joined(mine)
    assert sorted(row for batch in found.batches for row in batch) == list(range(rows))
    assert_trained_alike(found, plain(found.batches))
    assert_ldreg_mattered(found)


def lightning() -> None:
    check("pytorch_lightning", LAST)


def accelerate() -> None:
    check("accelerate", 0)  # it fills the last batch up with rows of the first


def transformers() -> None:
    check("transformers", 0)


ORDER = torch.randperm(2 * ROWS, generator=torch.Generator().manual_seed(2)).tolist()
EQUAL = [(ORDER[:32], ORDER[32:64]), (ORDER[64:96], ORDER[96:128])]  # rows of both ranks, step by step
UNEQUAL = [(ORDER[128:131], ORDER[131:132])]


def raw() -> None:
    """Ranks end with 3 rows and 1."""
    train_in_ddp(WithMomentum(regulariser()), EQUAL + UNEQUAL)


def compiled() -> None:
    """One graph: the gathering of equally many rows is in it."""
    model = WithMomentum(regulariser(equal_rows=True))
    train_in_ddp(torch.compile(model, backend="aot_eager", fullgraph=True), EQUAL)


def train_in_ddp(model: nn.Module, steps: list[tuple[list[int], list[int]]]) -> None:
    """DDP itself around a model with momentum features as extra references, beside the same model alone."""
    data, rank = Views(2 * ROWS), dist.get_rank()
    here = DistributedDataParallel(model, find_unused_parameters=False)
    alone = WithMomentum(regulariser(gather=False))
    optimizers = [torch.optim.SGD(model.parameters(), lr=RATE) for model in (here, alone)]
    for halves in steps:
        mine, both = halves[rank], halves[0] + halves[1]
        losses = [
            here(data.first[mine], data.second[mine], share=WORLD * len(mine) / len(both)),
            alone(data.first[both], data.second[both]),
        ]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mean = losses[0].detach().clone()
        dist.all_reduce(mean)
        torch.testing.assert_close(mean / WORLD, losses[1].detach(), **SAME)
        here.module.update_target()
        alone.update_target()
    torch.testing.assert_close(parameters(here.module), parameters(alone), **SAME)


CHECKS = {
    "raw": raw,
    "compiled": compiled,
    "pytorch_lightning": lightning,
    "accelerate": accelerate,
    "transformers": transformers,
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> processes.Checks:
    present = [check for name, check in CHECKS.items() if name not in runs.CLIENTS or importlib.util.find_spec(name)]
    return processes.once(present, WORLD, tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize("client", ["raw", "compiled", *runs.PRESENT])
def test_two_processes_train_as_one(outcome, client):
    outcome.assert_passed(CHECKS[client])
