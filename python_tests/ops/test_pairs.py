"""`row_logsumexp` and `row_softplus_sum`: derivatives by everything, once and twice, under compile and torch.func."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldreg_kernels.kernels import dispatch, native
from ldreg_kernels.ops.pairs import row_logsumexp, row_softplus_sum

CPU = pytest.mark.skipif(native.unavailable_reason() is not None, reason="the CPU extension is not built")


def unit(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows_ = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows_, dim=1).to(dtype).requires_grad_()


def number(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def calls() -> dict[str, tuple]:
    """Functions of tensors that all require grad, and those tensors in float64."""
    x, y, scale, bias = unit(6, 3, 1), unit(9, 3, 2), number(4.0), number(-1.0)
    return {
        "batch": (lambda x, scale: row_logsumexp(x, scale=scale), (x, scale)),
        "two views": (lambda x, scale: row_logsumexp(x, scale=scale, views=2), (x, scale)),
        "candidates": (lambda x, y, scale: row_logsumexp(x, y, scale=scale), (x, y, scale)),
        "gathered": (lambda x, y, scale: row_logsumexp(x, y, scale=scale, own=3, views=2), (x, y, scale)),
        "softplus": (
            lambda x, y, scale, bias: row_softplus_sum(x, y, scale=scale, bias=bias, own=2),
            (x, y, scale, bias),
        ),
    }


CALLS = pytest.mark.parametrize("name", calls())


@CALLS
def test_derivatives_by_everything_once_and_twice(name: str) -> None:
    function, inputs = calls()[name]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


# Tolerances of 1e-12 below: float64 sums of a few terms, added in another order.
@CALLS
def test_only_what_is_wanted_is_computed(name: str) -> None:
    function, inputs = calls()[name]
    together = torch.autograd.grad(function(*inputs).square().sum(), inputs)
    for wanted in range(len(inputs)):
        lone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(inputs)]
        (gradient,) = torch.autograd.grad(function(*lone).square().sum(), lone[wanted])
        torch.testing.assert_close(gradient, together[wanted], rtol=1e-12, atol=1e-14)


@CPU
@CALLS
def test_float32_is_the_cpu_backends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, inputs = calls()[name]
    truth = torch.autograd.grad(function(*inputs).square().sum(), inputs)
    singles = [t.detach().float().requires_grad_() for t in inputs]

    def refuse(*_):
        raise AssertionError("the reference was called")

    monkeypatch.setattr(dispatch._module("reference"), "pair_sums", refuse)
    value = function(*singles)
    assert value.dtype == torch.float32
    found = torch.autograd.grad(value.square().sum(), singles)
    for ours, theirs in zip(found, truth, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 2e-6  # logits up to 4, of rows rounded to float32


@CPU
@CALLS
def test_compiles_into_one_graph_with_its_backward(name: str) -> None:
    function, inputs = calls()[name]
    singles = [t.detach().float().requires_grad_() for t in inputs]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for call in (function, compiled):
        value = call(*singles)
        gradients = torch.autograd.grad(value.square().sum(), singles)
        if call is function:
            expected = (value, gradients)
    torch.testing.assert_close((value, gradients), expected)


@CALLS
def test_functional_transforms(name: str) -> None:
    function, inputs = calls()[name]
    every = tuple(range(len(inputs)))
    gradients = torch.func.grad(lambda *t: function(*t).sum(), argnums=every)(*inputs)
    expected = torch.autograd.grad(function(*inputs).sum(), inputs)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-14)
    tangents = tuple(torch.ones_like(t) for t in inputs)
    _, along = torch.func.jvp(lambda *t: function(*t).sum(), tuple(t.detach() for t in inputs), tangents)
    assert float(along) == pytest.approx(sum(float(g.sum()) for g in expected), rel=1e-12)
    stacked = torch.stack([inputs[0].detach(), -inputs[0].detach()])
    rest = inputs[1:]
    batched = torch.func.vmap(lambda x: function(x, *rest))(stacked)
    torch.testing.assert_close(batched, torch.stack([function(x, *rest) for x in stacked]), rtol=1e-12, atol=1e-14)


@CPU
@pytest.mark.parametrize("candidates", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_opcheck(candidates: bool, biased: bool) -> None:
    x, y = unit(6, 3, 1, torch.float32).detach(), unit(9, 3, 2, torch.float32).detach()
    scale = torch.tensor(4.0)
    pairs = (
        x,
        y if candidates else None,
        scale,
        scale - 5 if biased else None,
        None if candidates else 0,
        1,
        None,
        None,
        "auto",
    )
    state, _ = torch.ops.ldreg.pair_sums(*pairs, False)
    for at_once in (False, True):
        torch.library.opcheck(torch.ops.ldreg.pair_sums.default, (*pairs, at_once))
    for need_x, need_y in ((True, True), (False, True)):
        torch.library.opcheck(
            torch.ops.ldreg.pair_gradients.default, (*pairs, state, torch.ones(6), need_x, need_y and candidates)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_candidates_and_no_rows(dtype: torch.dtype) -> None:
    scale = number(3.0, dtype)
    lone, none = unit(1, 3, 1, dtype), torch.empty(0, 3, dtype=dtype, requires_grad=True)
    value = row_logsumexp(lone, scale=scale)
    assert value.tolist() == [-math.inf]
    (gradient,) = torch.autograd.grad(torch.logaddexp(value, value.new_zeros(1)).sum(), lone)
    assert gradient.tolist() == [[0, 0, 0]]
    assert row_logsumexp(lone, none, scale=scale).tolist() == [-math.inf]
    assert row_logsumexp(none, lone, scale=scale).tolist() == []
    for x, y in ((none, lone), (lone, none)):
        total = row_softplus_sum(x, y, scale=scale, bias=scale).sum()
        assert total.item() == 0
        assert all(not bool(g.any()) for g in torch.autograd.grad(total, (x, y, scale)))


def test_backends_are_chosen_and_refused_by_name() -> None:
    x, scale = unit(4, 3, 1), number(2.0)
    with pytest.raises(ValueError, match='backend must be "auto" or "reference" for float64 rows, got \'cpu\''):
        row_logsumexp(x, scale=scale, backend="cpu")
    single = x.detach().float()
    with pytest.raises(
        ValueError, match="backend must be one of auto, triton, cpu, reference for sums over pairs, got 'gpu'"
    ):
        row_logsumexp(single, scale=scale.float(), backend="gpu")
    ours = row_logsumexp(single, scale=scale.float(), backend="reference")
    # float32 rows, and logits up to 2: roundings of 1e-7
    torch.testing.assert_close(ours.double(), row_logsumexp(x, scale=scale), rtol=1e-6, atol=1e-6)


def test_a_backend_without_the_sums_says_who_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda name: None)
    monkeypatch.setattr(dispatch, "devices", lambda name: ("cpu",))
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*cpu, reference for sums over"):
        row_logsumexp(torch.ones(4, 3), scale=torch.tensor(1.0), backend="cuda")
