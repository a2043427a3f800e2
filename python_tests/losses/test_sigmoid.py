"""The sigmoid loss against loops over pairs in float64, its gradients, what the module learns, edges and settings."""

from __future__ import annotations

import math
import re

import pytest
import torch
from contrastive_loops import (
    assert_gradients_equal,
    assert_half_rows_are_the_rows,
    assert_near,
    assert_no_gradient_on_a_line,
    lengths,
    loop_sigmoid,
    mean,
    rows,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ldreg_kernels.losses import SigmoidLoss, sigmoid_loss


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (0.5, 2.0), (3.0, 0.0)])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (6, 4)])
def test_equals_the_loops(n: int, d: int, scale: float, bias: float) -> None:
    """In value and in every gradient: both sides, scale and bias."""
    numbers = [torch.tensor(value, dtype=torch.float64) for value in (scale, bias)]
    leaves = [leaf.requires_grad_() for leaf in (*rows(2, n, d), *numbers)]
    z1, z2, t, b = leaves
    assert_gradients_equal(sigmoid_loss(z1, z2, scale=t, bias=b), mean(loop_sigmoid(z1, z2, t, b)), leaves)
    assert sigmoid_loss(z1, z2, scale=scale, bias=bias).item() == sigmoid_loss(z1, z2, scale=t, bias=b).item()


def test_equals_torchs_logsigmoid() -> None:
    """The paper's Algorithm 1: labels of 1 and -1, all pairs summed, divided by the rows."""
    z1, z2 = rows(2, 6, 4)
    logits = 10 * F.normalize(z1) @ F.normalize(z2).T - 10
    expected = -F.logsigmoid((2 * torch.eye(6) - 1) * logits).sum() / 6
    assert sigmoid_loss(z1, z2, scale=10, bias=-10).item() == pytest.approx(expected.item(), rel=1e-12)


def test_gradient_by_finite_differences() -> None:
    numbers = [torch.tensor(value, dtype=torch.float64) for value in (3.0, -1.0)]
    leaves = [leaf.requires_grad_() for leaf in (*rows(2, 3, 3), *numbers)]
    assert torch.autograd.gradcheck(lambda a, b, t, s: sigmoid_loss(a, b, scale=t, bias=s), leaves)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -3.0)])
def test_collapse(scale: float, bias: float) -> None:
    """All rows equal: one positive and N - 1 negatives at one logit, N ln 2 at first; on a line: no gradient."""
    z, a = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64).repeat(5, 1), scale + bias
    expected = math.log1p(math.exp(-a)) + 4 * math.log1p(math.exp(a))
    assert sigmoid_loss(z, 2 * z, scale=scale, bias=bias).item() == pytest.approx(expected, rel=1e-12)
    if a == 0:
        assert expected == pytest.approx(5 * math.log(2), rel=1e-15)
    assert_no_gradient_on_a_line(lambda x, y: sigmoid_loss(x, y, scale=scale, bias=bias), [6, 6], 6 * scale)


def test_a_zero_row_has_cosine_0_and_gradient_0() -> None:
    z1, z2 = rows(2, 4, 3)
    z1[1], z2[2] = 0, 0
    loss = sigmoid_loss(z1.requires_grad_(), z2.requires_grad_(), scale=10, bias=-10)
    loss.backward()
    assert loss.item() == pytest.approx(mean(loop_sigmoid(z1.detach(), z2.detach(), 10, -10)).item(), rel=1e-12)
    assert (z1.grad[1].tolist(), z2.grad[2].tolist()) == ([0] * 3, [0] * 3)
    assert bool(z1.grad.isfinite().all() & z2.grad.isfinite().all())


def test_small_losses_keep_their_digits() -> None:
    """Losses of e^-25 in float32: only the logits' roundings, the scale times those of cosines, are left."""
    z1 = torch.eye(8)
    z2 = z1 + 0.01 * rows(1, 8, 8, dtype=torch.float32)[0]
    loss, truth = sigmoid_loss(z1, z2, scale=50, bias=-25), mean(loop_sigmoid(z1, z2, 50, -25)).item()
    assert 0 < truth < 1e-8
    assert loss.item() == pytest.approx(truth, rel=4 * 1.2e-7 * (50 + 25))


@given(
    n=st.integers(1, 5),
    d=st.integers(1, 16),
    exponent=st.floats(-30, 30),
    spread=st.floats(0, 1),
    scale=st.floats(0.05, 100),
    bias=st.floats(-50, 50),
    double=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_scale(n, d, exponent, spread, scale, bias, double, seed) -> None:
    leaves = lengths(rows(2, n, d, seed), exponent, spread, seed, torch.float64 if double else torch.float32)
    # Each row has N logits, off by roundings of the scale and of the bias; a row of z2 has N as well.
    assert_near(
        lambda a, b: sigmoid_loss(a, b, scale=scale, bias=bias),
        lambda a, b: mean(loop_sigmoid(a, b, scale, bias)),
        leaves,
        scale + abs(bias),
        n,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype: torch.dtype) -> None:
    z1, z2 = rows(2, 4, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        for other in (z2, z2.float()):
            loss = SigmoidLoss()(z1, other)
            assert loss.dtype == torch.float32
            # Of the rounded inputs; logits of 20 are off by 20 roundings.
            assert loss.item() == pytest.approx(mean(loop_sigmoid(z1, z2, 10, -10)).item(), rel=2e-6)


def test_half_precision_rows_with_a_factor(monkeypatch) -> None:
    assert_half_rows_are_the_rows(
        monkeypatch,
        "sigmoid",
        lambda a, b: sigmoid_loss(a, b, scale=10, bias=-10, backend="reference"),
        rows(2, 6, 8, dtype=torch.float16),
    )


def test_compiles_into_one_graph() -> None:
    z1, z2 = rows(2, 4, 8, dtype=torch.float32)
    function = torch.compile(sigmoid_loss, fullgraph=True, backend="aot_eager")
    for scale, bias in ((10.0, -10.0), (5.0, -2.0)):
        torch.testing.assert_close(
            function(z1, z2, scale=scale, bias=bias), sigmoid_loss(z1, z2, scale=scale, bias=bias)
        )
    module = SigmoidLoss(gather=False)
    torch.compile(module, fullgraph=True, backend="aot_eager")(z1, z2).backward()
    compiled = module.log_scale.grad.clone()
    module.zero_grad()
    module(z1, z2).backward()
    torch.testing.assert_close(compiled, module.log_scale.grad)


def test_module_learns_the_logarithm_of_its_scale_and_its_bias() -> None:
    z1, z2 = rows(2, 5, 4)
    module = SigmoidLoss(5.0, -3.0)
    loss = module(z1, z2)
    loss.backward()
    t, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (5.0, -3.0))
    expected = sigmoid_loss(z1, z2, scale=t, bias=b)
    expected.backward()
    # The module's numbers are float32.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert module.log_scale.grad.item() == pytest.approx(5 * t.grad.item(), rel=1e-6)
    assert module.bias.grad.item() == pytest.approx(b.grad.item(), rel=1e-6)
    assert [name for name, _ in module.named_parameters()] == ["log_scale", "bias"]
    assert repr(module) == "SigmoidLoss(learnable=True, gather=True, equal_rows=False)"


def test_module_starts_as_the_paper_does_and_may_stay_there() -> None:
    for module in (SigmoidLoss(), fixed := SigmoidLoss(learnable=False)):
        assert module.log_scale.item() == pytest.approx(math.log(10), rel=1e-7)
        assert module.bias.item() == -10
    assert list(fixed.parameters()) == []
    fixed.load_state_dict(SigmoidLoss(2.0, -1.0).state_dict())
    assert fixed.log_scale.item() == pytest.approx(math.log(2), rel=1e-7)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([torch.ones(3), torch.ones(3)], {}, ValueError, "z1 must have shape [N, D], got [3]"),
        ([torch.ones(3, 2), 2], {}, TypeError, "z2 must be a floating point tensor, got int"),
        ([torch.ones(3, 2), torch.ones(2, 2)], {}, ValueError, "z2 must have the shape of z1, [3, 2], got [2, 2]"),
        (
            [torch.ones(3, 2), torch.ones(3, 2).double()],
            {},
            TypeError,
            "z2 must have the dtype of z1, torch.float32, got torch.float64",
        ),
        ([torch.ones(0, 2)] * 2, {}, ValueError, "z1 must have at least 1 row, got 0"),
        ([torch.ones(3, 2)] * 2, {"scale": 0.0}, ValueError, "scale must be positive and finite, got 0.0"),
        (
            [torch.ones(3, 2)] * 2,
            {"backend": "gpu"},
            ValueError,
            "backend must be one of auto, triton, cpu, reference, got 'gpu'",
        ),
        ([torch.ones(3, 2)] * 2, {"equal_rows": 1}, TypeError, "equal_rows must be True or False, got int 1"),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, message: str) -> None:
    calls = [
        lambda: sigmoid_loss(*arguments, **{"scale": 10, "bias": -10} | options),
        lambda: SigmoidLoss(**options)(*arguments),
    ]
    for call in calls:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": "10"}, TypeError, "scale must be a number or a 0-d tensor, got '10'"),
        ({"scale": torch.ones(1)}, ValueError, "scale must be a number or a 0-d tensor, got shape [1]"),
        ({"bias": None}, TypeError, "bias must be a number or a 0-d tensor, got None"),
        ({"bias": math.inf}, ValueError, "bias must be finite, got inf"),
        ({"bias": torch.tensor(1)}, TypeError, "bias must be a floating point tensor, got torch.int64"),
    ],
)
def test_bad_scale_and_bias_of_the_function_are_named(options, error, message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        sigmoid_loss(torch.ones(3, 2), torch.ones(3, 2), **{"scale": 10, "bias": -10} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scale": torch.tensor(1.0)},
            "scale must be a number, got a Tensor of shape () and dtype torch.float32",
        ),
        ({"bias": "-10"}, "bias must be a number, got '-10'"),
        ({"learnable": 1}, "learnable must be True or False, got int 1"),
    ],
)
def test_bad_settings_of_the_module_are_named(options, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        SigmoidLoss(**options)
