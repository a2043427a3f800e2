"""`compat` in ordinary calls, on the fused path, against the published formulas in float64: LID, gradient, order of
the references, what is accepted and what is refused. Corners: test_compat_corners.py.
"""

import cases
import numpy as np
import oracle
import published
import pytest
import tolerances
import torch

from ldreg_kernels import compat
from ldreg_kernels.ops.call import Call
from ldreg_kernels.ops.lid import lid_function

FUNCTIONS = {"mom": compat.lid_mom_est, "mle": compat.lid_mle}


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
    expected = published.lid(data, reference, k, estimator)
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
    expected = published.lid(data, reference, k, estimator)
    oracle.check_lid(lid.detach(), expected.detach(), backend.name, torch.float32)
    (gradient,) = torch.autograd.grad(lid.log().mean(), data)
    (truth,) = torch.autograd.grad(expected.log().mean(), data)
    tolerance = tolerances.gradient(backend.name, torch.float32, expected.max().item())
    oracle.check_gradient(gradient, truth, tolerance, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_get_idx_is_the_order_of_all_references(estimator, dtype):
    data, reference = problem(None, 80, 10, dtype)
    idx, lid = FUNCTIONS[estimator](data, reference, k=15, get_idx=True)
    assert idx.shape == (80, 80)
    assert idx.dtype == torch.int64
    assert torch.equal(idx[:, 0], torch.arange(80))  # self first, at distance 0
    r = published.distances(data, reference).detach()
    found, truth = r.gather(1, idx), r.sort(dim=1).values
    torch.testing.assert_close(found, truth, rtol=tolerances.distance("cpu", dtype, 10), atol=0.0)
    assert torch.equal(idx.sort(dim=1).values, torch.arange(80).expand(80, 80))
    assert torch.equal(lid, FUNCTIONS[estimator](data, reference, k=15))


def test_get_idx_takes_the_lower_index_of_equal_distances():
    data = cases.quantised_grid(70, 3)  # squares of quarters: exact in every dtype
    idx, _ = compat.lid_mom_est(data, data.clone(), 12, get_idx=True)
    assert torch.equal(idx, published.order(data, data))


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
    assert idx.shape == (60, 60)


def test_features_of_any_shape_are_flattened():
    data = torch.randn(40, 3, 4, 2, generator=cases.seeded(1), requires_grad=True)
    lid = compat.lid_mom_est(data, data.detach(), 10)
    flat = data.detach().flatten(1)
    assert torch.equal(lid.detach(), compat.lid_mom_est(flat, flat, 10))
    lid.sum().backward()
    assert data.grad.shape == data.shape


@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_the_same_memory_reaches_the_op_as_it_is(estimator, monkeypatch):
    """`reference=data.detach()`, the published idiom: nothing is copied on the way, so that the op can see that the
    references are the queries.
    """
    seen = []

    def spy(x, y, *rest):
        seen.append((x, y))
        return lid_function(x, y, *rest)

    monkeypatch.setattr(compat, "lid_function", spy)
    wide = cases.normal(40, 24)
    maps = cases.normal(40, 12).reshape(40, 3, 2, 2)
    for data in (wide, wide[:, 4:16], wide.t().contiguous().t(), wide[::2], maps):
        data.requires_grad_()
        FUNCTIONS[estimator](data, data.detach(), 5)
        with torch.no_grad():
            FUNCTIONS[estimator](data, data, 5)
        for x, y in (seen.pop(), seen.pop()):
            assert x.data_ptr() == y.data_ptr() == data.data_ptr()
            assert x.shape == y.shape
            assert x.stride() == y.stride()
            assert not y.requires_grad
            assert data.dim() > 2 or x is data


@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_the_same_memory_gives_what_a_copy_gives(estimator):
    """Leaving out the own index, as the op does there, is dropping the smallest, also among copies of a row."""
    data = cases.features(60, 12).double()
    data[40:43] = data[:3]
    data.requires_grad_()
    results = []
    for reference in (data.detach(), data.detach().clone()):
        lid = FUNCTIONS[estimator](data, reference, 9)
        results.append((lid.detach(), *torch.autograd.grad(lid.log().sum(), data)))
    assert results[0][0].isfinite().all()
    torch.testing.assert_close(*results, rtol=tolerances.GRADIENT_FLOAT64, atol=tolerances.GRADIENT_FLOAT64)


@pytest.mark.parametrize("k", [np.int64(9), np.uint8(9), torch.tensor(9), torch.tensor(9, dtype=torch.int32)], ids=repr)
@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_k_may_be_any_integer(estimator, k):
    data, reference = problem(None, 60, 10)
    assert torch.equal(FUNCTIONS[estimator](data, reference, k), FUNCTIONS[estimator](data, reference, 9))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_half_and_float32_meet_under_autocast(estimator, half):
    """As in torch.cdist: both become float32, and the gradient comes back in the dtype of data."""
    function = FUNCTIONS[estimator]
    data, reference = cases.features(50, 12).to(half).requires_grad_(), cases.features(90, 12, seed=7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lid = function(data, reference, 20)
        assert torch.cdist(data, reference).dtype == lid.dtype == torch.float32
        other_way_round = function(reference, data.detach(), 20)
    assert torch.equal(lid, function(data.float(), reference, 20))
    assert torch.equal(other_way_round, function(reference, data.detach().float(), 20))
    lid.log().sum().backward()
    assert data.grad.dtype == half
    assert data.grad.isfinite().all()
    for wrong in (reference, reference.double()):
        with pytest.raises(TypeError, match=r"^reference must have the dtype of data .*, got"):
            function(data, wrong, 20)


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
        ((data[0], reference, 5), ValueError, r"^data must have at least 2 dimensions .*\(10,\)$"),
        ((data, reference[0], 5), ValueError, r"^reference must have at least 2 dimensions .*\(10,\)$"),
        (([1.0], reference, 5), TypeError, r"^data must be a torch\.Tensor, got list$"),
        ((data, None, 5), TypeError, r"^reference must be a torch\.Tensor, got NoneType$"),
        ((data.long(), reference, 5), TypeError, r"^data must be float32, .*got torch\.int64$"),
        ((data, reference.cfloat(), 5), TypeError, r"^reference must be float32, .*got torch\.complex64$"),
        ((data, reference.to_sparse(), 5), TypeError, r"^reference must be a dense .*got layout torch\.sparse_coo$"),
        ((data, reference[:, 1:], 5), ValueError, r"^reference must have the same number of features .*\(60, 9\)$"),
        ((data[:, :0], reference[:, :0], 5), ValueError, r"^data must have at least one feature .*\(60, 0\)$"),
        ((data, reference.to("meta"), 5), ValueError, r"^reference must be on the device of data \(cpu\), got meta$"),
        ((data, reference.double(), 5), TypeError, r"^reference must have the dtype of data .*got torch\.float64"),
        ((data, reference[:10], 30), ValueError, r"^k must be in \[-10, 9\] for 10 reference rows.*got 30$"),
        ((data, reference, -61), ValueError, r"^k must be in \[-60, 59\] for 60 reference rows.*got -61$"),
        ((data, reference[:0], 5), ValueError, r"^k must be in \[0, -1\] for 0 reference rows.*got 5$"),
        ((data, reference, 5.0), TypeError, r"^k must be an int, got float 5\.0$"),
        ((data, reference, True), TypeError, r"^k must be an int, got bool True$"),
        ((data, reference, np.bool_(True)), TypeError, r"bool"),
        ((data, reference, torch.tensor(True)), TypeError, r"^k must be an int, got a Tensor"),
        ((data, reference, torch.tensor(5.0)), TypeError, r"^k must be an int, got a Tensor"),
        ((data, reference, torch.tensor([5])), TypeError, r"^k must be an int, got a Tensor"),
        ((data, reference, None), TypeError, r"^k must be an int, got NoneType None$"),
        ((data, reference, 5, False, "mm"), ValueError, r"^compute_mode must be one of .*got 'mm'$"),
    ]:
        with pytest.raises(exception, match=message):
            function(*arguments)
