"""NT-Xent against an explicit double loop in float64, its gradient, its edges and a memory bank."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ntxent_loops import loop_loss, loop_nt_xent, loop_rows, views
from torch import Tensor, nn

from ldreg_kernels.losses import NTXentLoss, nt_xent_loss


@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 1, 0.5), (5, 3, 0.1), (7, 16, 1.0), (16, 8, 0.07)])
def test_equals_the_double_loop(n: int, d: int, temperature: float) -> None:
    z1, z2 = views(n, d)
    assert nt_xent_loss(z1, z2, temperature=temperature).item() == pytest.approx(
        loop_nt_xent(z1, z2, temperature), rel=1e-12
    )


def test_gradient_by_finite_differences() -> None:
    z1, z2 = (z.requires_grad_() for z in views(4, 3))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent_loss(a, b, temperature=0.3), (z1, z2))


def test_known_value_for_orthogonal_pairs() -> None:
    """Positives at cosine 1, all 2N - 2 negatives at cosine 0: l = -1/t + ln(e^(1/t) + 2N - 2)."""
    z = torch.eye(4, dtype=torch.float64)
    expected = -2.0 + math.log(math.exp(2.0) + 6)
    assert nt_xent_loss(z, z, temperature=0.5).item() == pytest.approx(expected, rel=1e-14)


def test_does_not_see_scale_of_rows_or_order_of_images() -> None:
    z1, z2 = views(6, 5)
    loss = nt_xent_loss(z1, z2, temperature=0.2)
    scaled = nt_xent_loss(z1 * torch.rand(6, 1, dtype=z1.dtype).add(0.1), 100 * z2, temperature=0.2)
    order = torch.randperm(6)
    torch.testing.assert_close(scaled, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(nt_xent_loss(z2[order], z1[order], temperature=0.2), loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z1, z2 = views(8, 16, dtype=dtype)
    loss = nt_xent_loss(z1, z2, temperature=0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop_nt_xent(z1, z2, 0.1), rel=1e-6)  # of the same, rounded inputs


def test_autocast_does_not_lower_the_precision() -> None:
    z1, z2 = views(8, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent_loss(z1, z2, temperature=0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop_nt_xent(z1, z2, 0.1), rel=1e-6)


def test_module_is_the_function() -> None:
    z1, z2 = views(5, 4)
    module = NTXentLoss(temperature=0.3)
    assert torch.equal(module(z1, z2), nt_xent_loss(z1, z2, temperature=0.3))
    assert "temperature=0.3" in repr(module)


@pytest.mark.parametrize(
    ("z1", "z2", "temperature", "error", "message"),
    [
        (
            torch.ones(3, 2),
            torch.ones(3, 2),
            0.0,
            ValueError,
            "temperature must be positive and finite, got 0.0",
        ),
        (torch.ones(3, 2), torch.ones(3, 2), math.nan, ValueError, "temperature must be positive"),
        (torch.ones(3), torch.ones(3), 0.1, ValueError, r"z1 must have shape \[N, D\], got \[3\]"),
        (torch.ones(3, 2), torch.ones(2, 2), 0.1, ValueError, r"z2 must have the shape of z1, \[3, 2\]"),
        (torch.ones(3, 2), torch.ones(3, 2).double(), 0.1, TypeError, "z2 must have the dtype of z1"),
        (torch.ones(3, 2).long(), torch.ones(3, 2), 0.1, TypeError, "z1 must be a floating point tensor"),
        (torch.ones(1, 2), torch.ones(1, 2), 0.1, ValueError, "z1 must have at least 2 rows, so that negatives exist"),
        (torch.ones(0, 2), torch.ones(0, 2), 0.1, ValueError, "z1 must have at least 2 rows"),
    ],
)
def test_bad_input_names_the_argument(
    z1: Tensor, z2: Tensor, temperature: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        nt_xent_loss(z1, z2, temperature=temperature)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be positive and finite, got -1.0"),
        ({"temperature": True}, TypeError, "temperature must be a number or a 0-d tensor, got True"),
        ({"temperature": "0.1"}, TypeError, "temperature must be a number or a 0-d tensor, got '0.1'"),
        (
            {"temperature": nn.Parameter(torch.ones(1))},
            ValueError,
            "temperature must be a number or a 0-d tensor, got shape [1]",
        ),
        (
            {"temperature": torch.tensor(1)},
            TypeError,
            "temperature must be a floating point tensor, got torch.int64",
        ),
        (
            {"backend": "cudaa"},
            ValueError,
            "backend must be one of auto, triton, cpu, reference, got 'cudaa'",
        ),
        ({"equal_rows": 1}, TypeError, "equal_rows must be True or False, got int 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_when_the_module_is_built_or_called(options, error, message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        NTXentLoss(**options)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        nt_xent_loss(torch.ones(3, 2), torch.ones(3, 2), **options)


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e20, 1e30])
def test_is_the_same_at_every_scale(scale: float) -> None:
    z1, z2 = views(16, 8, dtype=torch.float32)
    z1.requires_grad_()
    loss = nt_xent_loss(z1, z2, temperature=0.1)
    loss.backward()
    scaled = (z1.detach() * scale).requires_grad_()
    again = nt_xent_loss(scaled, z2 * scale, temperature=0.1)
    again.backward()
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    assert float((scaled.grad.double() * scale - z1.grad).norm() / z1.grad.norm()) < 1e-5  # 1/t times rounding


def test_a_zero_row_has_cosine_0_and_gradient_0() -> None:
    z1, z2 = views(4, 3)
    z1[2] = 0
    loss = nt_xent_loss(z1.requires_grad_(), z2, temperature=0.1)
    loss.backward()
    z = [row / max(math.sqrt(float(row @ row)), 1e-300) for row in torch.cat([z1.detach(), z2])]
    s = [[float(a @ b) / 0.1 for b in z] for a in z]
    expected = [math.log(sum(math.exp(s[i][j]) for j in range(8) if j != i)) - s[i][(i + 4) % 8] for i in range(8)]
    assert loss.item() == pytest.approx(sum(expected) / 8, rel=1e-12)
    assert z1.grad[2].tolist() == [0] * 3
    assert bool(z1.grad.isfinite().all())


def test_a_small_case_by_hand() -> None:
    """Rows (1, 0), (0, 1) and their other views (0.6, 0.8), (-1, 0), of several lengths; six cosines, t = 1/2."""
    z1 = torch.tensor([[2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    z2 = torch.tensor([[3.0, 4.0], [-0.1, 0.0]], dtype=torch.float64)
    e = math.exp
    terms = [
        -1.2 + math.log(e(1.2) + e(0.0) + e(-2.0)),  # (1, 0): 0.6 to its other view, 0 and -1 to the rest
        -0.0 + math.log(e(0.0) + e(0.0) + e(1.6)),  # (0, 1): 0 to its other view, 0 and 0.8
        -1.2 + math.log(e(1.2) + e(1.6) + e(-1.2)),  # (0.6, 0.8): 0.6 to its other view, 0.8 and -0.6
        -0.0 + math.log(e(0.0) + e(-2.0) + e(-1.2)),  # (-1, 0): 0 to its other view, -1 and -0.6
    ]
    assert nt_xent_loss(z1, z2, temperature=0.5).item() == pytest.approx(sum(terms) / 4, rel=1e-14)


def test_angles_in_the_plane() -> None:
    """The cosine of two rows is that of the angle between them, whatever their lengths."""
    degrees = torch.tensor([0.0, 25.0, 110.0, 5.0, 60.0, 170.0], dtype=torch.float64)  # three images, two views
    radians = degrees.deg2rad()
    z = torch.stack([radians.cos(), radians.sin()], dim=1) * torch.arange(1.0, 7.0)[:, None]
    cosine = (radians[:, None] - radians).cos() / 0.2
    others = cosine.exp().sum(dim=1) - cosine.diagonal().exp()
    expected = (others.log() - cosine[range(6), [3, 4, 5, 0, 1, 2]]).mean().item()
    assert nt_xent_loss(z[:3], z[3:], temperature=0.2).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 7.0])
@pytest.mark.parametrize("negatives", [0, 1, 3, 16])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_rows_that_are_all_parallel_know_nothing(n: int, negatives: int, temperature: float) -> None:
    """All cosines 1: the loss is the logarithm of the number of candidates, at every temperature."""
    direction = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    z = torch.linspace(0.1, 3, n, dtype=torch.float64)[:, None] * direction
    bank = direction.repeat(negatives, 1) * 4 if negatives else None
    if n == 1 and bank is None:
        with pytest.raises(ValueError, match="z1 must have at least 2 rows"):
            nt_xent_loss(z, z)
        return
    loss = nt_xent_loss(z, 2 * z, temperature=temperature, negatives=bank)
    assert loss.item() == pytest.approx(math.log(2 * n - 1 + negatives), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 1.0, 10.0])
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (1, 5, 3), (2, 1, 4), (6, 17, 3)])
def test_memory_bank_equals_the_double_loop(n: int, k: int, d: int, temperature: float) -> None:
    """In value and in every gradient, the bank's too."""
    leaves = [z.requires_grad_() for z in (*views(n, d), views(k, d, seed=1)[0])]
    loss = nt_xent_loss(leaves[0], leaves[1], temperature=temperature, negatives=leaves[2])
    expected = loop_loss(leaves[0], leaves[1], temperature, leaves[2])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-14)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_memory_bank_is_beside_the_batch() -> None:
    """One image and a bank that holds the four rows of two others: three terms of the six that three images have."""
    z1, z2 = views(3, 4)
    alone = nt_xent_loss(z1[:1], z2[:1], temperature=0.3, negatives=torch.cat([z1[1:], z2[1:]]))
    terms = loop_rows(z1, z2, 0.3, [z1[:0]] * 6)
    assert alone.item() == pytest.approx((terms[0] + terms[3]).item() / 2, rel=1e-12)


def test_memory_bank_gradient_by_finite_differences() -> None:
    z1, z2, bank = (z.requires_grad_() for z in (*views(2, 3), views(4, 3, seed=1)[0]))
    assert torch.autograd.gradcheck(lambda a, b, c: nt_xent_loss(a, b, temperature=0.3, negatives=c), (z1, z2, bank))


def test_memory_bank_has_no_order_and_no_scale() -> None:
    z1, z2 = views(5, 3)
    bank = views(7, 3, seed=1)[0]
    loss = nt_xent_loss(z1, z2, negatives=bank)
    for other in (bank.flip(0), bank * torch.logspace(-30, 30, 7, dtype=bank.dtype)[:, None]):
        torch.testing.assert_close(nt_xent_loss(z1, z2, negatives=other), loss, rtol=1e-12, atol=0)


def test_memory_bank_in_half_precision_and_under_autocast() -> None:
    z1, z2 = views(4, 8, dtype=torch.bfloat16)
    bank = views(6, 8, seed=1, dtype=torch.bfloat16)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent_loss(z1, z2, negatives=bank)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop_nt_xent(z1, z2, 0.1, bank), rel=1e-6)


def test_compiles_into_one_graph_whatever_the_temperature() -> None:
    """A temperature that changes becomes a symbol, of which not everything may be asked."""
    z1, z2 = views(4, 8, dtype=torch.float32)
    compiled = torch.compile(nt_xent_loss, fullgraph=True, backend="aot_eager")
    for temperature in (0.1, 0.2, 0.3):
        torch.testing.assert_close(
            compiled(z1, z2, temperature=temperature), nt_xent_loss(z1, z2, temperature=temperature)
        )


HALF, SINGLE = torch.bfloat16, torch.float32


@pytest.mark.parametrize("dtypes", [(HALF, HALF, SINGLE), (SINGLE, HALF, HALF), (HALF, SINGLE, torch.float16)], ids=str)
def test_autocast_takes_the_widest_dtype(dtypes: tuple[torch.dtype, ...]) -> None:
    """A bank that was kept in float32 beside what autocast hands out; outside of autocast it stays an error."""
    rows = [z.to(dtype) for z, dtype in zip((*views(4, 8), views(6, 8, seed=1)[0]), dtypes, strict=True)]
    first, second, bank = (z.requires_grad_() for z in rows)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent_loss(first, second, negatives=bank)
    wide = [z.detach().float().requires_grad_() for z in rows]
    expected = nt_xent_loss(wide[0], wide[1], negatives=wide[2])
    assert torch.equal(loss, expected)
    for z, gradient, theirs in zip(
        rows, torch.autograd.grad(loss, rows), torch.autograd.grad(expected, wide), strict=True
    ):
        assert torch.equal(gradient, theirs.to(z.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert nt_xent_loss(first, second.double()).dtype == torch.float64
    with pytest.raises(TypeError, match="must have the dtype of z1"):
        nt_xent_loss(first, second, negatives=bank)


@pytest.mark.parametrize("n", range(2, 20))
def test_views_may_change_places(n: int) -> None:
    for d in (1, 32):
        z1, z2 = views(n, d, seed=n)
        torch.testing.assert_close(nt_xent_loss(z1, z2), nt_xent_loss(z2, z1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradient_in_every_dtype(dtype: torch.dtype) -> None:
    z1, z2 = (z.requires_grad_() for z in views(4, 5, dtype=dtype))
    nt_xent_loss(z1, z2, temperature=0.5).backward()
    doubles = [z.detach().double().requires_grad_() for z in (z1, z2)]
    loop_loss(*doubles, 0.5).backward()
    for z, double in zip((z1, z2), doubles, strict=True):
        assert z.grad.dtype == dtype
        # Rounded once to dtype; in float32 the roundings of 1/t times a cosine on the way.
        error = (z.grad.double() - double.grad).norm() / double.grad.norm()
        assert float(error) < max(torch.finfo(dtype).eps, 2e-6)


@given(
    n=st.integers(1, 6),
    d=st.integers(1, 16),
    k=st.integers(0, 5),
    exponent=st.floats(-30, 30),
    spread=st.floats(0, 1),
    temperature=st.floats(0.02, 20),
    double=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_scale_and_temperature(n, d, k, exponent, spread, temperature, double, seed) -> None:
    """Value and gradient against the double loop; rows of one call may differ in length by 60 orders of magnitude."""
    if n == 1 and k == 0:
        k = 1
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * n + k, d, generator=generator, dtype=torch.float64)
    lengths = exponent * (1 - spread) + spread * (60 * torch.rand(2 * n + k, 1, generator=generator).double() - 30)
    dtype = torch.float64 if double else torch.float32
    rows = (rows * 10**lengths).to(dtype)
    leaves = [z.clone().requires_grad_() for z in (rows[:n], rows[n : 2 * n])]
    bank = rows[2 * n :] if k else None
    truths = [z.detach().double().requires_grad_() for z in leaves]
    loss, truth = nt_xent_loss(*leaves, temperature=temperature, negatives=bank), loop_loss(*truths, temperature, bank)
    # A cosine of D <= 16 terms is off by a few roundings, and so is a logit by a few roundings over t.
    rounding = 8 * torch.finfo(dtype).eps
    assert abs(loss.item() - truth.item()) <= rounding * (1 / temperature + 1 + truth.item())
    loss.backward()
    truth.backward()
    for z, double_z in zip(leaves, truths, strict=True):
        # The gradient per unit of a row's length, at most 2/t in all: its roundings, times what a logit's do to exp.
        ours, theirs = (g.double() * z.detach().double().norm(dim=1, keepdim=True) for g in (z.grad, double_z.grad))
        assert float((ours - theirs).abs().max()) <= rounding * (1 + 1 / temperature) * 2 / temperature


@pytest.mark.parametrize(
    ("negatives", "error", "message"),
    [
        (torch.ones(0, 2), ValueError, r"negatives must have shape \[K, 2\] with K >= 1, the D of z1, got \[0, 2\]"),
        (torch.ones(4, 3), ValueError, r"negatives must have shape \[K, 2\] with K >= 1, the D of z1, got \[4, 3\]"),
        (torch.ones(2), ValueError, r"negatives must have shape \[N, D\], got \[2\]"),
        (torch.ones(4, 2).double(), TypeError, "negatives must have the dtype of z1, torch.float32, got torch.float64"),
        (torch.ones(4, 2).long(), TypeError, "negatives must be a floating point tensor"),
        (torch.ones(4, 2, device="meta"), ValueError, "negatives must be on the device of z1, cpu, got meta"),
        ([[1.0, 2.0]], TypeError, "negatives must be a floating point tensor, got list"),
    ],
)
def test_bad_negatives_are_named(negatives, error: type[Exception], message: str) -> None:
    for call in (nt_xent_loss, NTXentLoss()):
        with pytest.raises(error, match=message):
            call(torch.ones(3, 2), torch.ones(3, 2), negatives=negatives)


def test_no_rows_beside_a_bank_are_refused() -> None:
    with pytest.raises(ValueError, match="z1 must have at least 1 row, got 0"):
        nt_xent_loss(torch.ones(0, 2), torch.ones(0, 2), negatives=torch.ones(1, 2))


def test_a_learned_temperature() -> None:
    z1, z2 = (z.requires_grad_() for z in views(4, 3))
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, t: nt_xent_loss(a, b, temperature=t), (z1, z2, temperature))
    module = NTXentLoss(nn.Parameter(torch.tensor(0.3)))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    module(z1.float(), z2.float()).backward()
    (truth,) = torch.autograd.grad(nt_xent_loss(z1, z2, temperature=temperature), temperature)
    assert float(module.temperature.grad) == pytest.approx(float(truth), rel=1e-5)  # float32, and 1 / 0.3^2
    assert "temperature=a Parameter of shape ()" in repr(module)


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.04])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_low_temperatures_in_float32(temperature: float, backend: str) -> None:
    """Logits up to 100: off by 100 half ulps, 6e-6, and so are what is made of them."""
    z1, z2 = views(12, 16)
    for second in (z2, z1 + z2, -z1):  # negatives win, positives win, positives are opposite
        leaves = [z.float().requires_grad_() for z in (z1, second)]
        doubles = [z.detach().double().requires_grad_() for z in leaves]
        loss = nt_xent_loss(*leaves, temperature=temperature, backend=backend)
        truth = loop_loss(*doubles, temperature)
        assert loss.item() == pytest.approx(truth.item(), rel=2e-7 / temperature)
        for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(truth, doubles), strict=True):
            assert float((ours - theirs).norm() / theirs.norm()) < 2e-7 / temperature


@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_losses_far_below_one_ulp_of_their_logits(temperature: float) -> None:
    """Identical views of orthogonal images: l = ln(1 + (2N - 2) exp(-1/t)), 2e-43 at t = 0.01, 4e-9 at 0.05.

    A float32 logarithm of a sum that holds the positive would be 100 and take 100 away: 0.
    """
    z = torch.eye(3)
    expected = math.log1p(4 * math.exp(-1 / temperature))
    assert nt_xent_loss(z, z, temperature=temperature).item() == pytest.approx(expected, rel=1e-5, abs=1e-44)


def test_one_negative() -> None:
    """One image whose views are equal, and a bank of one orthogonal row: a logistic loss."""
    z, bank = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    assert nt_xent_loss(z, z, temperature=0.5, negatives=bank).item() == pytest.approx(
        math.log1p(math.exp(-2.0)), rel=1e-14
    )


def test_orthogonal_views() -> None:
    """All 2N rows orthogonal, positives too: every candidate is as good, l = ln(2N - 1)."""
    z1, z2 = torch.eye(8, dtype=torch.float64).chunk(2)
    assert nt_xent_loss(z1, z2, temperature=0.1).item() == pytest.approx(math.log(7), rel=1e-14)
