"""`lid`: every estimator and its gradient against float64, and the invariances of a dimension."""

import cases
import oracle
import pytest
import tolerances
import torch

import ldreg_kernels as ldk
from ldreg_kernels.kernels.contract import ESTIMATORS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(64, 3, 3), (130, 24, 17), (257, 65, 64), (96, 700, 48), (400, 12, 256)]


def check(backend, x, y=None, *, k, estimator, self_index=None):
    """LID and its gradient for one problem."""
    x = x.detach().requires_grad_()
    lid = backend.lid(x, y, k=k, estimator=estimator, self_index=self_index)
    assert lid.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    truth, _ = oracle.lid(x, y, k=k, estimator=estimator, self_index=self_index)
    oracle.check_lid(lid.detach(), truth, backend.name, x.dtype)

    weight = 0.5 + torch.rand(len(x), generator=cases.seeded(1), dtype=lid.dtype)
    (gradient,) = torch.autograd.grad((lid * weight).sum(), x)
    indices = backend.knn(x, y, k=k, self_index=self_index).indices
    expected, values = oracle.lid_gradient_given(x, y, indices, estimator, weight)
    tolerance = tolerances.gradient(backend.name, x.dtype, values.max().item())
    oracle.check_gradient(gradient, expected, tolerance, x.dtype)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("rows", "D", "k"), SHAPES)
def test_own_batch(backend, rows, D, k, estimator):
    check(backend, cases.features(rows, D), k=k, estimator=estimator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dtypes(backend, estimator, dtype):
    check(backend, cases.features(120, 40).to(dtype), k=20, estimator=estimator)


@pytest.mark.parametrize("estimator", ["mom", "mle"])
@pytest.mark.parametrize(("B", "N", "D", "k"), [(1, 50, 6, 50), (90, 301, 20, 33), (200, 64, 31, 16)])
def test_two_sets(backend, B, N, D, k, estimator):
    check(backend, cases.features(B, D), cases.features(N, D, seed=9), k=k, estimator=estimator)


@pytest.mark.parametrize("estimator", ["mom", "hill"])
def test_self_index(backend, estimator):
    y = cases.features(150, 16)
    check(backend, y[30:70], y, k=20, estimator=estimator, self_index=30)
    own = torch.arange(30, 70)
    own[::4] = -1
    check(backend, y[30:70] + 1e-2, y, k=20, estimator=estimator, self_index=own)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_is_orthogonal_to_a_dilation(backend, estimator):
    """sum_j d_j w_j = 0: growing about a neighbourhood changes nothing, so <grad x_i, x_i - y> sums to 0 over
    y = the kNN.

    With the references on a ray from x_i the scale-free identity is a statement about the gradient itself.
    """
    g = cases.seeded(2)
    direction = torch.nn.functional.normalize(torch.randn(1, 16, generator=g, dtype=torch.float64), dim=1)
    steps = (1 + torch.rand(40, 1, generator=g, dtype=torch.float64)).sort(dim=0).values
    y = torch.cat([steps * direction, torch.zeros(1, 16)]).to(torch.float64)
    x = torch.zeros(1, 16, dtype=torch.float64, requires_grad=True)
    # Moving x by -t along the ray grows every distance by t: d lnLID = t sum_j w_j. Scaling by s grows d_j by
    # s d_j.
    lid = backend.lid(x, y[:40], k=30, estimator=estimator)
    (gradient,) = torch.autograd.grad(lid.log().sum(), x)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    d = (steps[:30, 0] * scale)[None]
    from ldreg_kernels.kernels import reference

    value, _ = reference.estimate(d, estimator)
    (dilation,) = torch.autograd.grad(value.log().sum(), scale, retain_graph=True)
    (w,) = torch.autograd.grad(reference.estimate(e := d.detach().requires_grad_(), estimator)[0].log().sum(), e)
    bound = tolerances.SCALE_FREE * (1 + lid.item()) * (d * w).abs().sum().item()
    assert abs(dilation.item()) <= bound
    along = -(gradient @ direction.T).item()
    assert abs(along - w.sum().item()) <= tolerances.GRADIENT_FLOAT64 * w.abs().sum().item()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_invariances(backend, estimator):
    """Translation, rotation, scale and a permutation of the features change no LID."""
    x = cases.features(200, 32)
    lid = backend.lid(x, k=32, estimator=estimator).double()
    rotation, _ = torch.linalg.qr(cases.normal(32, 32, seed=4, dtype=torch.float64))
    close = tolerances.INVARIANCE * lid * (1 + lid)
    for name, moved in {
        "translated": x + 3.0,
        "rotated": (x.double() @ rotation).float(),
        "scaled": x * 37.0,
        "permuted": x[:, torch.randperm(32, generator=cases.seeded(5))],
        "mirrored": -x,
        "embedded": torch.cat([x, torch.full((200, 50), 2.0)], 1),
    }.items():
        other = backend.lid(moved, k=32, estimator=estimator).double()
        assert ((other - lid).abs() <= close).all(), name


def test_power_of_two_scale_is_exact(backend):
    x = cases.features(150, 24)
    lid = backend.lid(x, k=20)
    for exponent in (-20, -3, 4, 20):
        assert torch.equal(backend.lid(x * 2.0**exponent, k=20), lid)


def test_conversions_between_estimators(backend):
    """On what the backend returns, not on formulas: mom and mom_amsaleg, hill and hill_unbiased."""
    x, k = cases.features(200, 24), 40
    lid = {name: backend.lid(x, k=k, estimator=name).double() for name in ESTIMATORS}
    close = tolerances.lid(backend.name, x.dtype, lid["mom"])
    assert ((1 + lid["mom_amsaleg"] - (1 + lid["mom"]) * k / (k - 1)).abs() <= 2 * close).all()
    close = tolerances.lid(backend.name, x.dtype, lid["hill"])
    assert ((lid["hill_unbiased"] * (k - 1) / (k - 2) - lid["hill"]).abs() <= 2 * close).all()


def test_translating_query_and_references_leaves_no_gradient_in_sum(backend):
    """The full gradient's invariants: with references attached by symmetry, the forces of a pair cancel.

    Row-local gradients g_i = sum_j c_ij (x_i - y_j); the reaction on y_j is -c_ij (x_i - y_j). Adding it,
    sum_p g_p = 0 and <g, X> = sum_ij c_ij d_ij^2 = sum_i u_i sum_j w_ij d_ij = 0. The reaction is recovered
    by float64 autograd over the indices.
    """
    x = cases.features(100, 8).double().requires_grad_()
    indices = backend.knn(x, k=12).indices
    lid = backend.lid(x, k=12)
    (local,) = torch.autograd.grad(lid.log().sum(), x)
    rows = x.detach()[indices].requires_grad_()  # [B, k, D] the neighbours, attached
    d = torch.linalg.vector_norm(x.detach()[:, None] - rows, dim=2)
    m = d[:, :-1].mean(1)
    (reaction,) = torch.autograd.grad((m / (d[:, -1] - m)).log().sum(), rows)
    full = local + torch.zeros_like(local).index_add(0, indices.flatten(), reaction.flatten(0, 1))
    size = local.norm().item()
    assert full.sum(0).norm().item() <= tolerances.GRADIENT_FLOAT64 * size
    assert abs((full * x.detach()).sum().item()) <= tolerances.GRADIENT_FLOAT64 * size * x.norm().item()


@pytest.mark.parametrize("name", sorted(cases.layouts(torch.zeros(2, 2))))
def test_layouts(backend, name):
    """A view gives bit for bit what its contiguous copy gives, gradient included."""
    x = backend.put(cases.features(80, 19)).requires_grad_()
    view = cases.layouts(x.detach())[name].requires_grad_()
    (plain,) = torch.autograd.grad(backend.lid(x, k=16).sum(), x)
    (seen,) = torch.autograd.grad(backend.lid(view, k=16).sum(), view)
    assert torch.equal(backend.lid(view, k=16), backend.lid(x, k=16))
    assert torch.equal(seen, plain)


def test_default_k_is_64(backend):
    x = cases.features(100, 8)
    assert torch.equal(backend.lid(x), backend.lid(x, k=64, estimator="mom"))


def test_empty_batch_has_a_graph(backend):
    x = torch.empty(0, 7, requires_grad=True)
    for y in (None, cases.normal(10, 7)):
        lid = backend.lid(x, y, k=4)
        assert lid.shape == (0,)
        (gradient,) = torch.autograd.grad(lid.sum(), x)
        assert gradient.shape == (0, 7)


def test_smallest_k(backend):
    x = cases.features(30, 5)
    for estimator in ESTIMATORS:
        k = 3 if estimator == "hill_unbiased" else 2
        check(backend, x, k=k, estimator=estimator)


def test_backend_auto_is_the_fastest_available(backend):
    x = backend.put(cases.features(60, 5))
    auto = ldk.lid(x, k=8).cpu()
    truth, _ = oracle.lid(x, k=8)
    oracle.check_lid(auto, truth, backend.name, x.dtype)
