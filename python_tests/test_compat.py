"""`compat` against the published formulas, written here anew from their description, in float64; gradient and
indices too.

Conventions: sort with self included, drop column 0 whatever it is, k = min(k, rows of data - 2), MoM over the
k - 1 nearer distances, MLE with k in the numerator and 1e-4 inside the logarithm.
"""

import cases
import oracle
import pytest
import tolerances
import torch

from ldreg_kernels import compat
from ldreg_kernels.ops.call import Call
from ldreg_kernels.ops.lid import lid_function

FUNCTIONS = {"mom": compat.lid_mom_est, "mle": compat.lid_mle}


def published(data, reference, k, estimator):
    """LID [B] and sorted indices [B, N] in float64."""
    k = min(k, data.shape[0] - 2)
    difference = data.double()[:, None] - reference.detach().double()[None]
    r, order = torch.linalg.vector_norm(difference, dim=2).sort(dim=1, stable=True)
    r = r[:, 1 : k + 1]
    if estimator == "mom":
        m = r[:, : k - 1].mean(dim=1)
        return m / (r[:, k - 1] - m), order
    return -k / torch.log(r[:, : k - 1] / r[:, k - 1 :] + 1e-4).sum(dim=1), order


# (rows of data or None for the batch itself, rows of reference, D, k)
SHAPES = [
    (None, 100, 16, 20),
    (None, 64, 300, 62),
    (None, 64, 8, 500),  # k is clamped to 62
    (8, 64, 24, 32),  # eight queries silently run k = 6
    (50, 90, 12, 33),
    (4, 30, 5, 20),  # the fewest rows: k = 2
]


def problem(B, N, D, dtype=torch.float32):
    reference = cases.features(N, D).to(dtype)
    data = reference.clone() if B is None else cases.features(B, D, seed=7).to(dtype)
    return data.requires_grad_(), reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("estimator", FUNCTIONS)
@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES)
def test_equals_the_published_formula(B, N, D, k, estimator, dtype):
    data, reference = problem(B, N, D, dtype)
    lid = FUNCTIONS[estimator](data, reference, k)
    expected, _ = published(data, reference, k, estimator)
    oracle.check_lid(lid.detach(), expected.detach(), "auto", dtype)
    (gradient,) = torch.autograd.grad(lid.log().mean(), data)
    (truth,) = torch.autograd.grad(expected.log().mean(), data)
    tolerance = tolerances.gradient("auto", dtype, expected.max().item())
    oracle.check_gradient(gradient, truth.double(), tolerance, dtype)


@pytest.mark.parametrize("estimator", FUNCTIONS)
@pytest.mark.parametrize(("B", "N", "D", "k"), SHAPES)
def test_dropping_the_smallest_on_every_backend(backend, B, N, D, k, estimator):
    """The path below `compat`, which itself always takes the fastest backend."""
    data, reference = problem(B, N, D)
    k = min(k, data.shape[0] - 2)
    x, y = backend.put(data), backend.put(reference)
    lid = lid_function(x, y, None, None, k, Call(estimator, drop_smallest=True, backend=backend.name)).cpu()
    expected, _ = published(data, reference, k, estimator)
    oracle.check_lid(lid.detach(), expected.detach(), backend.name, torch.float32)
    (gradient,) = torch.autograd.grad(lid.log().mean(), data)
    (truth,) = torch.autograd.grad(expected.log().mean(), data)
    tolerance = tolerances.gradient(backend.name, torch.float32, expected.max().item())
    oracle.check_gradient(gradient, truth, tolerance, torch.float32)


@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_get_idx(estimator):
    data, reference = problem(None, 80, 10)
    idx, lid = FUNCTIONS[estimator](data, reference, k=15, get_idx=True)
    _, order = published(data, reference, 15, estimator)
    assert idx.shape == (80, 16)
    assert torch.equal(idx[:, 0], torch.arange(80))  # self first, at distance 0
    assert torch.equal(idx, order[:, :16])
    assert torch.equal(lid, FUNCTIONS[estimator](data, reference, k=15))


@pytest.mark.parametrize(
    "mode", ["use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"]
)
def test_every_compute_mode_is_exact(mode):
    data, reference = problem(None, 80, 10)
    plain = compat.lid_mom_est(data, reference, 15)
    assert torch.equal(compat.lid_mom_est(data, reference, 15, compute_mode=mode), plain)


def test_defaults_and_positions():
    """Signatures: lid_mom_est(data, reference, k, get_idx, compute_mode), lid_mle with k = 20."""
    data, reference = problem(None, 60, 10)
    assert torch.equal(compat.lid_mle(data, reference), compat.lid_mle(data, reference, 20, False))
    idx, _ = compat.lid_mom_est(data, reference, 9, True, "donot_use_mm_for_euclid_dist")
    assert idx.shape == (60, 10)


def test_features_of_any_shape_are_flattened():
    data = torch.randn(40, 3, 4, 2, generator=cases.seeded(1), requires_grad=True)
    lid = compat.lid_mom_est(data, data.detach(), 10)
    flat = data.detach().flatten(1)
    assert torch.equal(lid.detach(), compat.lid_mom_est(flat, flat, 10))
    lid.sum().backward()
    assert data.grad.shape == data.shape


def test_the_nearest_is_dropped_whatever_it_is():
    """A query that is not in the reference loses its true nearest neighbour: published, and different from
    `lid`.
    """
    data, reference = problem(50, 90, 12)
    nearest = torch.cdist(data, reference).argmin(dim=1)
    moved = reference.clone()
    moved[nearest[0]] = data[0].detach() + 1e-3  # nearer still: still dropped, so nothing changes for row 0
    assert torch.equal(compat.lid_mom_est(data, moved, 20)[0], compat.lid_mom_est(data, reference, 20)[0])


def test_no_gradient_without_asking():
    data, reference = problem(None, 60, 10)
    assert not compat.lid_mle(data.detach(), reference).requires_grad
    with torch.no_grad():
        assert not compat.lid_mle(data, data).requires_grad


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_bad_input(function):
    data, reference = problem(None, 60, 10)
    for arguments, exception, message in [
        ((data[:3], reference, 5), ValueError, r"^data must have at least 4 rows .* got 3$"),
        ((data[0], reference, 5), ValueError, r"^data must have at least 2 dimensions .*\(10,\)$"),
        ((data, reference[0], 5), ValueError, r"^reference must have at least 2 dimensions .*\(10,\)$"),
        (([1.0], reference, 5), TypeError, r"^data must be a torch\.Tensor, got list$"),
        ((data, None, 5), TypeError, r"^reference must be a torch\.Tensor, got NoneType$"),
        ((data, data, 5), ValueError, r"^reference must not require grad"),
        ((data, reference, 1), ValueError, r"^k must be in \[2, 59\] for 60 reference rows.*got 1$"),
        ((data, reference[:10], 30), ValueError, r"^k must be in \[2, 9\] for 10 reference rows.*got 30$"),
        ((data, reference, 5.0), TypeError, r"^k must be an int, got float 5\.0$"),
        ((data, reference, 5, False, "mm"), ValueError, r"^compute_mode must be one of .*got 'mm'$"),
    ]:
        with pytest.raises(exception, match=message):
            function(*arguments)
