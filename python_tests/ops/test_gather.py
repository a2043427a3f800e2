"""Rows of several processes side by side: value, offset and gradient against the joint computation in one process.

Every function of `CHECKS` runs in each of three gloo processes, all in one start; `test_in_three_processes` reports it.
"""

from __future__ import annotations

import re

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ldreg_kernels.ops.gather import Gathered, gather_rows, several_processes

WORLD = 3
EVEN, UNEVEN = (4, 4, 4), (3, 0, 5)


def rows_of(rank: int, count: int, columns: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """What `rank` holds; every process can say."""
    values = torch.randn(count, columns, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    return values.to(dtype) if dtype.is_floating_point else (values * 40).abs().to(dtype)


def loss_of(rank: int, rows: Tensor, offset: int) -> Tensor:
    """Something that differs from rank to rank, and in which rank `rank`'s own rows have a part of their own."""
    weights = torch.linspace(-1, 2, rows.numel(), dtype=rows.dtype).view_as(rows)
    own = rows[offset : offset + 2].square().sum()
    return ((rank + 1) * weights * rows.square()).sum() + own


def joint_gradient(counts: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The gradient of the sum of all ranks' losses in one process, rank by rank."""
    leaves = [rows_of(rank, count, dtype=dtype).requires_grad_() for rank, count in enumerate(counts)]
    rows = torch.cat(leaves)
    offsets = [sum(counts[:rank]) for rank in range(len(counts))]
    sum(loss_of(rank, rows, offset) for rank, offset in enumerate(offsets)).backward()
    return [leaf.grad for leaf in leaves]


def check_against_joint(counts: tuple[int, ...], **options) -> None:
    rank = dist.get_rank()
    x = rows_of(rank, counts[rank]).requires_grad_()
    rows, offset = gather_rows(x, **options)
    assert offset == sum(counts[:rank])
    assert torch.equal(rows, torch.cat([rows_of(r, count) for r, count in enumerate(counts)]))
    loss_of(rank, rows, offset).backward()
    # Three summands in another order: a few roundings of float64.
    torch.testing.assert_close(x.grad, joint_gradient(counts)[rank], rtol=1e-14, atol=1e-14)


def even() -> None:
    check_against_joint(EVEN)


def uneven_with_an_empty_rank() -> None:
    check_against_joint(UNEVEN)


def equal_rows() -> None:
    check_against_joint(EVEN, equal_rows=True)


def equal_rows_exchanges_no_header() -> None:
    """Also where ranks differ in what a header would compare, such as whether x requires grad."""
    rank = dist.get_rank()
    x = rows_of(rank, 4).requires_grad_(rank == 0)
    rows, offset = gather_rows(x, equal_rows=True)
    assert (rows.requires_grad, offset, rows.shape) == (rank == 0, 4 * rank, (12, 2))


def all_ranks_empty() -> None:
    for columns in (0, 2):
        for options in ({}, {"equal_rows": True}):
            x = torch.zeros(0, columns, requires_grad=True)
            rows, offset = gather_rows(x, **options)
            assert (rows.shape, offset) == ((0, columns), 0)
            rows.sum().backward()
            assert x.grad.shape == (0, columns)


def rows_without_features() -> None:
    x = torch.zeros(UNEVEN[dist.get_rank()], 0, requires_grad=True)
    rows, offset = gather_rows(x)
    assert (rows.shape, offset) == ((8, 0), (0, 3, 3)[dist.get_rank()])
    rows.sum().backward()
    assert x.grad.shape == x.shape


def every_dtype() -> None:
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    for dtype in dtypes:
        for counts in (EVEN, UNEVEN):
            rows, _ = gather_rows(rows_of(dist.get_rank(), counts[dist.get_rank()], dtype=dtype))
            assert rows.dtype == dtype
            assert torch.equal(rows, torch.cat([rows_of(r, count, dtype=dtype) for r, count in enumerate(counts)]))


def gradient_in_every_dtype() -> None:
    """Small integers, whose sums no format rounds: the sum over ranks comes in the dtype of x."""
    rank = dist.get_rank()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for counts in (EVEN, UNEVEN):
            x = rows_of(rank, counts[rank], dtype=dtype).requires_grad_()
            rows, _ = gather_rows(x)
            places = torch.arange(rows.numel(), dtype=dtype).view_as(rows)
            ((rank + 1) * places * rows).sum().backward()
            start = sum(counts[:rank])
            assert x.grad.dtype == dtype
            assert torch.equal(x.grad, 6 * places[start : start + counts[rank]])


def nan_and_negative_zero_arrive_bit_by_bit() -> None:
    x = torch.tensor([[float("nan"), -0.0, 1e-45, float("-inf")]])
    rows, _ = gather_rows(x)
    assert torch.equal(rows.view(torch.int32), x.view(torch.int32).expand(WORLD, -1))


def any_layout() -> None:
    """Transposed, sliced and expanded x, and a gradient that is expanded from one number."""
    rank = dist.get_rank()
    wide = rows_of(rank, 8, 6)
    for x in (wide.T, wide[::2, 1:3], wide[:1].expand(4, -1)):
        x = x.detach().requires_grad_()
        rows, _ = gather_rows(x)
        everyone = [rows_of(r, 8, 6) for r in range(WORLD)]
        assert torch.equal(rows, torch.cat([w.as_strided(x.shape, x.stride(), x.storage_offset()) for w in everyone]))
        rows.sum().backward()
        assert torch.equal(x.grad, torch.full_like(x, WORLD))


def subgroup() -> None:
    """Offsets count within the group: global rank 1 is its rank 0."""
    group = dist.new_group([1, 2])
    rank = dist.get_rank()
    if rank == 0:
        for call in (several_processes, lambda g: gather_rows(rows_of(0, 2), g)):
            with pytest.raises(ValueError, match="group must be a process group that this process is a member of"):
                call(group)
        return
    for counts in ((2, 2), (1, 3)):
        x = rows_of(rank, counts[rank - 1]).requires_grad_()
        rows, offset = gather_rows(x, group)
        assert offset == (0, counts[0])[rank - 1]
        assert torch.equal(rows, torch.cat([rows_of(1, counts[0]), rows_of(2, counts[1])]))
        (rank * rows.sum()).backward()
        assert torch.equal(x.grad, torch.full_like(x, 3.0))  # ranks 1 and 2


def group_of_one() -> None:
    """Nothing to exchange: the very tensor comes back."""
    groups = [dist.new_group([rank]) for rank in range(WORLD)]
    x = rows_of(dist.get_rank(), 2)
    assert not several_processes(groups[dist.get_rank()])
    assert gather_rows(x, groups[dist.get_rank()]).rows is x


def not_a_group() -> None:
    with pytest.raises(TypeError, match=r"group must be a torch.distributed.ProcessGroup or None, got list"):
        gather_rows(rows_of(0, 2), [0, 1])


def disagreement() -> None:
    """Every rank gets the same error, and the next call works."""
    last = dist.get_rank() == WORLD - 1
    cases = [
        (torch.zeros(2, 4 if last else 3), "got 3 features of torch.float32 without grad on rank 0 and 4 features"),
        (torch.zeros(2, 3).to(torch.bfloat16 if last else torch.float32), "and 3 features of torch.bfloat16 without"),
        (torch.zeros(2, 3, requires_grad=last), "features of torch.float32 with grad on rank 2"),
        (torch.zeros((2, 3, 4) if last else (2, 3)), "2-D (rows, features) on every rank, got 3 dimensions on rank 2"),
    ]
    for x, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            gather_rows(x)
        messages = [None] * WORLD
        dist.all_gather_object(messages, str(caught.value))
        assert len(set(messages)) == 1, messages
    even()


def no_graph_without_gradient() -> None:
    x = rows_of(dist.get_rank(), 3)
    for options in ({}, {"equal_rows": True}):
        assert gather_rows(x, **options).rows.grad_fn is None
        with torch.no_grad():
            assert not gather_rows(x.clone().requires_grad_(), **options).rows.requires_grad


def second_derivative() -> None:
    """d/dx of |dL/dx|^2 with L = W sum x^3: 2 (3 W x^2) (6 W x)."""
    for counts in (EVEN, UNEVEN):
        x = rows_of(dist.get_rank(), counts[dist.get_rank()]).requires_grad_()
        rows, _ = gather_rows(x)
        (gradient,) = torch.autograd.grad(rows.pow(3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        torch.testing.assert_close(x.grad, 36.0 * WORLD**2 * x.detach().pow(3), rtol=1e-13, atol=0)


def compiled_and_functional() -> None:
    """With equal rows one graph holds all of it; torch.func.grad goes through."""
    rank = dist.get_rank()

    def step(x: Tensor) -> Tensor:
        rows, offset = gather_rows(x, equal_rows=True)
        return loss_of(rank, rows, offset)

    x = rows_of(rank, 4).requires_grad_()
    expected = joint_gradient(EVEN)[rank]
    torch.testing.assert_close(torch.func.grad(step)(x.detach()), expected, rtol=1e-14, atol=1e-14)
    torch.compile(step, fullgraph=True, backend="aot_eager")(x).backward()
    torch.testing.assert_close(x.grad, expected, rtol=1e-14, atol=1e-14)


CHECKS = [
    even,
    uneven_with_an_empty_rank,
    equal_rows,
    equal_rows_exchanges_no_header,
    all_ranks_empty,
    rows_without_features,
    every_dtype,
    gradient_in_every_dtype,
    nan_and_negative_zero_arrive_bit_by_bit,
    any_layout,
    subgroup,
    group_of_one,
    not_a_group,
    disagreement,
    no_graph_without_gradient,
    second_derivative,
    compiled_and_functional,
]


test_in_three_processes = processes.tests_of(CHECKS, WORLD)


def test_without_processes_nothing_is_done() -> None:
    x = torch.zeros(3, 2)
    assert not several_processes()
    assert gather_rows(x) == Gathered(x, 0)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "x must be a torch.Tensor, got list"),
        (torch.zeros(3), ValueError, r"x must be 2-D \(rows, features\), got shape \(3,\)"),
        (torch.zeros(3, 2).to_sparse(), TypeError, "x must be a dense"),
    ],
)
def test_bad_input_names_the_argument(x, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gather_rows(x)
