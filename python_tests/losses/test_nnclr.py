"""NNCLR's loss against loops in float64; its queue against a list of rows and a search by hand."""

from __future__ import annotations

import copy
import io
import math
import re

import pytest
import torch
from contrastive_loops import (
    assert_gradients_equal,
    assert_near,
    assert_no_gradient_on_a_line,
    cosine,
    lengths,
    loop_nnclr,
    mean,
    rows,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ldreg_kernels.losses import NNCLRLoss, SupportQueue, nnclr_loss


@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 1, 0.5), (5, 3, 0.1), (6, 16, 1.0)])
def test_equals_the_loops(n: int, d: int, temperature: float) -> None:
    """In value and in every gradient: predictions and temperature; none reaches the neighbours."""
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    nn1, nn2, p1, p2 = (z.requires_grad_() for z in rows(4, n, d))
    loss = nnclr_loss(nn1, nn2, p1, p2, temperature=t)
    assert_gradients_equal(loss, mean(loop_nnclr(nn1, nn2, p1, p2, t)), [p1, p2, t])
    nnclr_loss(nn1, nn2, p1, p2, temperature=t).backward()
    assert (nn1.grad, nn2.grad) == (None, None)


def test_equals_torchs_cross_entropy() -> None:
    """Neighbours of view 1 with predictions of view 2, the labels of one direction, the mean of two."""
    nn1, nn2, p1, p2 = (F.normalize(z) for z in rows(4, 6, 4))
    one, other = (F.cross_entropy(a @ b.T / 0.1, torch.arange(6)) for a, b in ((nn1, p2), (nn2, p1)))
    assert nnclr_loss(nn1, nn2, p1, p2).item() == pytest.approx((one.item() + other.item()) / 2, rel=1e-12)


def test_gradient_by_finite_differences() -> None:
    nn1, nn2, p1, p2 = rows(4, 3, 3)
    t = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b, t: nnclr_loss(nn1, nn2, a, b, temperature=t), [leaf.requires_grad_() for leaf in (p1, p2, t)]
    )


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_collapse(temperature: float) -> None:
    z = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64).repeat(4, 1)
    assert nnclr_loss(z, z, 2 * z, z, temperature=temperature).item() == pytest.approx(math.log(4), rel=1e-12)
    line = torch.linspace(-1, 2, 6, dtype=torch.float64)[:, None] * z[:1]
    assert_no_gradient_on_a_line(
        lambda p1, p2: nnclr_loss(line, -line, p1, p2, temperature=temperature), [6, 6], 1 / temperature
    )


def test_a_zero_row_has_cosine_0_and_gradient_0() -> None:
    leaves = rows(4, 4, 3)
    leaves[0][0], leaves[2][1], leaves[3][2] = 0, 0, 0
    loss = nnclr_loss(*leaves[:2], *(z.requires_grad_() for z in leaves[2:]))
    loss.backward()
    assert loss.item() == pytest.approx(mean(loop_nnclr(*(z.detach() for z in leaves), 0.1)).item(), rel=1e-12)
    assert (leaves[2].grad[1].tolist(), leaves[3].grad[2].tolist()) == ([0] * 3, [0] * 3)
    assert all(bool(z.grad.isfinite().all()) for z in leaves[2:])


@given(
    n=st.integers(2, 5),
    d=st.integers(1, 16),
    exponent=st.floats(-30, 30),
    spread=st.floats(0, 1),
    temperature=st.floats(0.01, 20),
    double=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_scale_and_temperature(n, d, exponent, spread, temperature, double, seed) -> None:
    assert_near(
        lambda a, b, p1, p2: nnclr_loss(a, b, p1, p2, temperature=temperature),
        lambda a, b, p1, p2: mean(loop_nnclr(a.detach(), b.detach(), p1, p2, temperature)),
        lengths(rows(4, n, d, seed), exponent, spread, seed, torch.float64 if double else torch.float32),
        1 / temperature,
    )


def test_half_precision_and_autocast_compute_in_float32() -> None:
    leaves = rows(4, 4, 8, dtype=torch.bfloat16)
    loss = nnclr_loss(*leaves)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(mean(loop_nnclr(*leaves, 0.1)).item(), rel=1e-6)  # of the rounded inputs
    with torch.autocast("cpu", torch.bfloat16):
        assert nnclr_loss(*(z.float() for z in leaves[:2]), *leaves[2:]).item() == loss.item()


def test_compiles_into_one_graph_whatever_the_temperature() -> None:
    compiled = torch.compile(nnclr_loss, fullgraph=True, backend="aot_eager")
    leaves = rows(4, 4, 8, dtype=torch.float32)
    for temperature in (0.1, 0.2):
        torch.testing.assert_close(
            compiled(*leaves, temperature=temperature), nnclr_loss(*leaves, temperature=temperature)
        )


def test_module_is_the_function() -> None:
    leaves = rows(4, 5, 4)
    module = NNCLRLoss(0.3)
    assert torch.equal(module(*leaves), nnclr_loss(*leaves, temperature=0.3))
    assert repr(module) == "NNCLRLoss(temperature=0.3, gather=True, equal_rows=False)"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([torch.ones(3)] * 4, {}, ValueError, "nn1 must have shape [N, D], got [3]"),
        (
            [torch.ones(3, 2), torch.ones(2, 2), *[torch.ones(3, 2)] * 2],
            {},
            ValueError,
            "nn2 must have the shape of nn1, [3, 2], got [2, 2]",
        ),
        (
            [torch.ones(3, 2), torch.ones(3, 2), 1, torch.ones(3, 2)],
            {},
            TypeError,
            "p1 must be a floating point tensor, got int",
        ),
        (
            [*[torch.ones(3, 2)] * 3, torch.ones(3, 2).double()],
            {},
            TypeError,
            "p2 must have the dtype of nn1, torch.float32, got torch.float64",
        ),
        ([torch.ones(1, 2)] * 4, {}, ValueError, "nn1 must have at least 2 rows, so that negatives exist, got 1"),
        (
            [torch.ones(3, 2)] * 4,
            {"temperature": -1.0},
            ValueError,
            "temperature must be positive and finite, got -1.0",
        ),
        (
            [torch.ones(3, 2)] * 4,
            {"backend": "gpu"},
            ValueError,
            "backend must be one of auto, triton, cpu, reference, got 'gpu'",
        ),
        ([torch.ones(3, 2)] * 4, {"equal_rows": 1}, TypeError, "equal_rows must be True or False, got int 1"),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, message: str) -> None:
    calls = [lambda: nnclr_loss(*arguments, **options), lambda: NNCLRLoss(**options)(*arguments)]
    for call in calls:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call()


def kept(queue: SupportQueue) -> Tensor:
    """What the queue holds, the oldest first."""
    return queue.rows.roll(-queue.pointer, 0)[queue.rows.shape[0] - queue.filled :]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("counts", [[3, 3, 3, 3], [7, 7], [1] * 9, [2, 0, 5, 1], [4, 20], [8, 7, 3]], ids=str)
def test_the_queue_keeps_the_last_rows(counts: list[int], dtype: torch.dtype) -> None:
    """Seven of them, whatever the batches are: it goes round where it is full, in the middle of a batch too."""
    queue, expected = SupportQueue(7, 4, dtype=dtype), torch.empty(0, 4, dtype=dtype)
    for step, count in enumerate(counts):
        z = rows(1, count, 4, seed=step, dtype=torch.float32)[0] * 10.0 ** (5 * step - 20)
        queue.enqueue(z)
        unit = (z.double() / z.double().norm(dim=1, keepdim=True)).to(dtype)
        expected = torch.cat([expected, unit])[-7:]
        assert queue.filled == len(expected)
        # Made in float32 at least; at half precision a row may be rounded to the other side, one step of 2^-7.
        torch.testing.assert_close(kept(queue), expected, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=0)


@pytest.mark.parametrize("filled", [1, 3, 10, 17])
def test_finds_the_row_of_the_largest_cosine(filled: int) -> None:
    """Among those that have been put in, not among the places that are still empty."""
    queue, past, z = SupportQueue(10, 3), rows(1, filled, 3)[0], rows(1, 6, 3, seed=1)[0]
    queue.enqueue(past.float())
    z[0] = -past[-1]  # all cosines of a row may be negative: an empty place, at cosine 0, would be nearer
    nearest = queue(z)
    for row, found in zip(z, nearest, strict=True):
        best = max(cosine(row, q).item() for q in past[-10:])
        assert cosine(row, found).item() == pytest.approx(best, abs=1e-6)  # kept in float32
        assert found.norm().item() == pytest.approx(1, rel=1e-6)


def test_rows_are_found_at_every_scale() -> None:
    queue, past, z = SupportQueue(8, 3), *rows(2, 8, 3, dtype=torch.float32)
    queue.enqueue(past * torch.logspace(-30, 30, 8)[:, None])
    expected = queue(z)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(queue(z * scale), expected, rtol=0, atol=0)


def test_an_empty_queue_gives_the_rows_themselves() -> None:
    z = rows(1, 4, 3)[0].requires_grad_()
    found = SupportQueue(8, 3)(z)
    torch.testing.assert_close(found, F.normalize(z.detach()), rtol=1e-14, atol=0)
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_rows_and_no_gradient(dtype: torch.dtype) -> None:
    """Also under autocast, which does not lower the search: bfloat16 would find others among so many."""
    queue, z = SupportQueue(500, 16), rows(1, 100, 16, dtype=dtype)[0].requires_grad_()
    queue.enqueue(rows(1, 400, 16, seed=1)[0])
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found = queue(z)
        assert (found.dtype, found.shape, found.requires_grad) == (dtype, z.shape, False)
        assert torch.equal(found, queue(z))
        queue.enqueue(z)
    assert not queue.rows.requires_grad
    assert list(queue.parameters()) == []


def test_no_rows_are_no_trouble() -> None:
    queue = SupportQueue(8, 3)
    queue.enqueue(torch.empty(0, 3))
    assert queue.filled == 0
    queue.enqueue(torch.ones(2, 3))
    assert queue(torch.empty(0, 3)).shape == (0, 3)


def test_goes_on_where_it_was_saved() -> None:
    queue = SupportQueue(7, 3)
    queue.enqueue(rows(1, 5, 3)[0])
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    loaded = SupportQueue(7, 3)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    twins = [queue, loaded, copy.deepcopy(queue)]
    for twin in twins[1:]:
        assert (twin.filled, twin.pointer) == (5, 5)
    for twin in twins:
        twin.enqueue(rows(1, 4, 3, seed=1)[0])
        assert torch.equal(twin.rows, queue.rows)
        assert (twin.filled, twin.pointer) == (7, 2)
    assert queue.rows.data_ptr() != twins[2].rows.data_ptr()
    assert repr(queue) == "SupportQueue(size=7, dim=3, dtype=torch.float32, filled=7)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SupportQueue(0, 3), ValueError, "size must be at least 1, got 0"),
        (lambda: SupportQueue(3, 0), ValueError, "dim must be at least 1, got 0"),
        (lambda: SupportQueue(3.0, 3), TypeError, "size must be an int, got float 3.0"),
        (
            lambda: SupportQueue(3, 3, dtype=torch.int64),
            TypeError,
            "dtype must be float32, float64, bfloat16 or float16, got torch.int64",
        ),
        (
            lambda: SupportQueue(3, 3, backend="gpu"),
            ValueError,
            "backend must be one of auto, cuda, triton, cpu, reference, got 'gpu'",
        ),
        (lambda: SupportQueue(3, 3)(torch.ones(2)), ValueError, "z must have shape [N, D], got [2]"),
        (
            lambda: SupportQueue(3, 3)(torch.ones(2, 4)),
            ValueError,
            "z must have shape [N, 3], the D of the queue, got [2, 4]",
        ),
        (
            lambda: SupportQueue(3, 3).enqueue(torch.ones(2, 3, device="meta")),
            ValueError,
            "z must be on the device of the queue, cpu, got meta",
        ),
        (
            lambda: SupportQueue(3, 3).enqueue(torch.ones(2, 3).long()),
            TypeError,
            "z must be a floating point tensor, got torch.int64",
        ),
        (
            lambda: SupportQueue(3, 3).enqueue(torch.ones(2, 3), equal_rows=1),
            TypeError,
            "equal_rows must be True or False, got int 1",
        ),
        (
            lambda: SupportQueue(3, 3).enqueue(torch.ones(2, 3), group=3),
            TypeError,
            "group must be a torch.distributed.ProcessGroup or None, got int",
        ),
    ],
)
def test_bad_arguments_of_the_queue_are_named(call, error, message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_a_row_that_is_not_finite_has_no_neighbour() -> None:
    queue = SupportQueue(8, 3)
    queue.enqueue(torch.eye(3))
    found = queue(torch.tensor([[math.nan, 0, 0], [0, 0, math.inf], [0, 2.0, 0]]))
    assert found.isnan().all(dim=1).tolist() == [True, True, False]
    assert found[2].tolist() == [0, 1, 0]


def test_a_state_of_another_size_is_refused() -> None:
    queue = SupportQueue(6, 3)
    for state in ([6, 6], [0, 7], [-1, 2]):
        with pytest.raises(ValueError, match="state must be that of a queue of 6 rows, got pointer"):
            queue.set_extra_state(torch.tensor(state))
