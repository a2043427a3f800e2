"""`compat` where the published code gives something odd, in float64 against the published formulas: few rows, k below
2 and below 0, k beyond the references; a reference that requires grad; `lid_mom_est_eps`.

The fuzz runs all of it together, ordinary calls too. Rows whose distances are equal are aside: documented otherwise.
"""

import cases
import published
import pytest
import tolerances
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldreg_kernels import compat
from ldreg_kernels.kernels.contract import LID_MAX

FUNCTIONS = {"mom": compat.lid_mom_est, "mle": compat.lid_mle, "mom_eps": compat.lid_mom_est_eps}


def normal(n, D, seed=0, dtype=torch.float64):
    return cases.normal(n, D, seed, dtype)


def check_lid(found, truth):
    """NaN and both infinities in the same rows, all others within the tolerance of float64."""
    finite = truth.isfinite()
    torch.testing.assert_close(found[~finite], truth[~finite], rtol=0.0, atol=0.0, equal_nan=True)
    allowed = tolerances.LID_FLOAT64 * (1 + truth[finite].abs()) ** 2
    assert ((found[finite] - truth[finite]).abs() <= allowed).all()


def check_gradient(found, truth, lid):
    """NaN entries in the same places, all others within the tolerance of float64 in L2."""
    assert torch.equal(found.isnan(), truth.isnan())
    found, truth = found.nan_to_num(0.0), truth.nan_to_num(0.0)
    size = 1 + lid[lid.isfinite()].abs().max().item() if lid.isfinite().any() else 1.0
    assert (found - truth).norm() <= tolerances.GRADIENT_FLOAT64 * size * truth.norm()


def gradients(lid, leaves):
    weight = torch.linspace(1, 2, len(lid), dtype=lid.dtype)
    return torch.autograd.grad((lid * weight).sum(), leaves)


# ------------------------------------------------------------------------------------------------- everything together


@settings(max_examples=300)
@given(
    B=st.integers(0, 9),
    N=st.integers(0, 13),
    D=st.integers(1, 5),
    k=st.integers(-15, 16),
    estimator=st.sampled_from(sorted(FUNCTIONS)),
    kind=st.sampled_from(["apart", "rows of the reference", "the reference itself"]),
    both_sides=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_the_published_values_and_gradients(B, N, D, k, estimator, kind, both_sides, seed):
    reference = normal(N, D, seed).requires_grad_(both_sides)
    if kind == "apart":
        data = normal(B, D, seed + 1)
    elif kind == "rows of the reference":
        data = reference.detach()[:B].clone()
    else:
        data = reference
    if data is not reference:
        data.requires_grad_()
    try:
        truth = published.lid(data, reference, k, estimator)
    except IndexError:
        with pytest.raises(ValueError, match=rf"^k must be in \[{-N}, {N - 1}\] for {N} reference rows"):
            FUNCTIONS[estimator](data, reference, k)
        return
    idx, lid = FUNCTIONS[estimator](data, reference, k, get_idx=True)
    assert torch.equal(idx, published.order(data, reference))
    if min(k, len(data) - 2) >= 2 and estimator != "mom_eps":
        # Distances that cannot be told apart: `mle` is negative where they are within 1e-4 of each other.
        aside = ~((truth.detach() > 0) & (truth.detach() < LID_MAX))
        assert lid.detach()[aside].isnan().all()
        lid, truth = lid[~aside], truth[~aside]
    check_lid(lid.detach(), truth.detach())
    leaves = [t for t in dict.fromkeys((data, reference)) if t.requires_grad]
    for found, expected in zip(gradients(lid, leaves), gradients(truth, leaves), strict=True) if leaves else ():
        check_gradient(found, expected, truth.detach())


# ------------------------------------------------------------------------------------------------- few rows, small k


@pytest.mark.parametrize(
    ("B", "estimator", "expected"),
    [
        (3, "mom", torch.nan),
        (3, "mle", -torch.inf),
        (3, "mom_eps", torch.nan),
        (2, "mom", torch.nan),
        (2, "mle", torch.nan),
        (2, "mom_eps", torch.nan),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_last_batch_of_two_or_three_rows(B, estimator, expected, dtype):
    x = cases.features(B, 8).to(dtype).requires_grad_()
    lid = FUNCTIONS[estimator](x, x.detach(), 20)
    assert lid.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(lid.detach().nan_to_num(0.5), torch.full((B,), expected).to(lid).nan_to_num(0.5))
    lid.sum().backward()
    assert x.grad.shape == x.shape


def test_one_row_counts_from_the_largest_distance():
    """k = min(20, 1 - 2) = -1: the last distance is the k-th, all between it and the nearest come before."""
    x, y = torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [4.0], [-8.0]])
    assert compat.lid_mom_est(x.double(), y.double(), 20).item() == 3 / (8 - 3)
    assert compat.lid_mom_est_eps(x, y, 20).item() == pytest.approx(3 / (8 - 3 + 1e-4), rel=1e-7)
    expected = 1 / torch.tensor([2 / 8 + 1e-4, 4 / 8 + 1e-4]).log().sum().item()
    assert compat.lid_mle(x, y, 20).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"^k must be in \[0, -1\] for 0 reference rows"):
        compat.lid_mom_est(x, y[:0], 20)


@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_equal_distances_in_a_corner_stay_as_published(estimator):
    """A negative k and a grid, whose distances are exact: the gap is 0 in places, and nothing is masked."""
    x = cases.quantised_grid(1, 3).double()
    y = x + torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2]], dtype=torch.float64)
    for rows in (y[:3], y):
        truth = published.lid(x, rows, 5, estimator)
        torch.testing.assert_close(FUNCTIONS[estimator](x, rows, 5), truth, rtol=1e-15, atol=0.0)
    assert compat.lid_mom_est(x, y[:3], 5).item() == torch.inf


@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_one_reference_row(estimator):
    x, y = normal(2, 3), normal(1, 3, 1)
    idx, lid = FUNCTIONS[estimator](x, y, 20, get_idx=True)
    assert torch.equal(idx, torch.zeros(2, 1, dtype=torch.int64))
    assert lid.isnan().all()


# ------------------------------------------------------------------------------------------------- both sides


@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_gradcheck_on_both_sides(estimator):
    function = FUNCTIONS[estimator]
    x, y = normal(6, 4).requires_grad_(), normal(9, 4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: function(x, y, 4), (x, y))
    assert torch.autograd.gradcheck(lambda x: function(x, x, 4), (x,))
    assert torch.autograd.gradcheck(lambda y: function(x.detach(), y, 4), (y,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("estimator", ["mom", "mle"])
def test_a_reference_that_requires_grad_changes_no_value(estimator, dtype):
    """The fused value, and the fused gradient on the side of data; without recording it is the fused way itself."""
    function = FUNCTIONS[estimator]
    x, y = cases.features(60, 24).to(dtype), cases.features(90, 24, seed=7).to(dtype)
    x.requires_grad_()
    fused = function(x, y, 20)
    (fused_gradient,) = gradients(fused, [x])
    y.requires_grad_()
    lid = function(x, y, 20)
    assert lid.dtype == fused.dtype
    assert ((lid - fused).abs() <= tolerances.lid("cpu", dtype, lid.detach())).all()
    on_data, on_reference = gradients(lid, [x, y])
    assert on_data.dtype == on_reference.dtype == dtype
    tolerance = tolerances.gradient("cpu", dtype, lid.max().item())
    assert (on_data - fused_gradient).double().norm() <= tolerance * fused_gradient.double().norm()
    with torch.no_grad():
        assert torch.equal(function(x, y, 20), fused)


@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_two_runs_agree_bit_for_bit(estimator):
    x = cases.features(80, 16).requires_grad_()
    first, second = (gradients(FUNCTIONS[estimator](x, x, 12), [x])[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("estimator", ["mom", "mle"])
def test_degenerate_rows_are_nan_with_gradient_0_on_either_way(estimator, both_sides):
    """Six copies of a row, k = 4: the documented difference, whether the reference requires grad or not."""
    y = normal(20, 5)
    y[10:16] = y[10] + 100  # far off, so that no other row has them as neighbours
    x = y.clone().requires_grad_()
    y.requires_grad_(both_sides)
    lid = FUNCTIONS[estimator](x, y, 4)
    copies = torch.zeros(20, dtype=torch.bool)
    copies[10:16] = True
    assert torch.equal(lid.isnan(), copies)
    for gradient in gradients(lid.nan_to_num(1.0), [x, y] if both_sides else [x]):
        assert (gradient[copies] == 0).all()
        assert gradient.isfinite().all()
        assert gradient[~copies].any()


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("estimator", ["mom", "mle"])
def test_equal_distances_are_nan_with_gradient_0_on_either_way(estimator, both_sides):
    """A simplex, where the published code gives an Inf, +-1e16 or a negative number."""
    x = torch.eye(8, dtype=torch.float64).requires_grad_()
    y = x.detach().clone().requires_grad_(both_sides)
    lid = FUNCTIONS[estimator](x, y, 6)
    assert lid.isnan().all()
    for gradient in gradients(lid, [x, y] if both_sides else [x]):
        assert (gradient == 0).all()


def test_nan_in_a_row_reaches_the_gradient():
    """So that a gradient scaler skips the step."""
    x = normal(12, 3)
    x[4, 1] = torch.nan
    x.requires_grad_()
    lid = compat.lid_mom_est(x, x, 5)
    assert torch.equal(lid.isnan().nonzero().flatten(), torch.tensor([4]))
    assert gradients(lid, [x])[0].isnan().any()


@pytest.mark.parametrize("scale", [1e160, 1e-160])
def test_squares_beyond_float64_cost_nothing(scale):
    x = normal(12, 3)
    expected = compat.lid_mom_est(x, x, 5)
    x = (x * scale).requires_grad_()
    lid = compat.lid_mom_est(x, x, 5)
    check_lid(lid.detach(), expected)
    assert gradients(lid, [x])[0].isfinite().all()


def test_eps_is_finite_where_all_distances_are_equal():
    """A simplex: every gap is 0, so LID = r / 1e-4, with a gradient."""
    x = torch.eye(8, dtype=torch.float64).requires_grad_()
    lid = compat.lid_mom_est_eps(x, x.detach(), 6)
    torch.testing.assert_close(lid.detach(), torch.full((8,), 2**0.5 / 1e-4, dtype=torch.float64), rtol=1e-10, atol=0.0)
    assert gradients(lid, [x])[0].isfinite().all()
    assert compat.lid_mom_est(x, x.detach(), 6).isnan().all()
