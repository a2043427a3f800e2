"""Features on which the matrix-product form of the distance fails, and data made to defeat a low-precision
selection.

Truth is float64. On the ill-conditioned features the published float32 computation must itself fail, or the
comparison would prove nothing.
"""

from functools import cache

import cases
import oracle
import pytest
import tolerances
import torch

import ldreg_kernels as ldk
from ldreg_kernels.kernels import reference

N, D, K = 2048, 256, 64


@cache
def ill_conditioned(name):
    """(x, true distances [N, K]), one truth for all backends."""
    generate, _ = cases.ILL_CONDITIONED[name]
    x = generate(N, D)
    return x, oracle.knn(x, k=K).distances


def mean_relative_error(lid, truth):
    return ((lid.double() - truth).abs() / truth).mean().item()


@pytest.mark.parametrize("name", cases.ILL_CONDITIONED)
def test_features_are_as_ill_conditioned_as_they_claim(name):
    x, d = ill_conditioned(name)
    rho = (x.double().square().sum(1) / d[:, -1].square()).median().item()
    claimed = cases.ILL_CONDITIONED[name][1]
    assert 0.5 * claimed < rho < 2 * claimed


@pytest.mark.parametrize("estimator", ["mom", "hill"])
@pytest.mark.parametrize("name", cases.ILL_CONDITIONED)
def test_lid_of_ill_conditioned_features(backend, name, estimator):
    x, d = ill_conditioned(name)
    truth, _ = reference.estimate(d, estimator)
    lid = backend.lid(x, k=K, estimator=estimator)
    assert mean_relative_error(lid, truth) <= tolerances.ILL_CONDITIONED
    oracle.check_lid(lid, truth, backend.name, x.dtype)


@pytest.mark.parametrize("name", ["collapsed", "tight_clusters"])
def test_the_published_form_fails_there(name):
    x, d = ill_conditioned(name)
    truth, _ = reference.estimate(d, "mom")
    published = reference.published_lid(x, x, K)
    assert mean_relative_error(published, truth) > tolerances.PUBLISHED_IS_WORSE_THAN


@pytest.mark.parametrize("name", cases.ILL_CONDITIONED)
def test_fast_evaluates_exactly_whatever_it_selects(backend, name):
    """`fast` may choose other neighbours, never report a wrong distance to the ones it chose."""
    x, d = ill_conditioned(name)
    found = backend.knn(x, k=K, precision="fast")
    at_indices = oracle.distances_given(x, None, found.indices)
    tolerance = tolerances.distance(backend.name, x.dtype, D)
    oracle.assert_relative(found.distances, at_indices, tolerance, 0.0, "distance of the returned row")
    assert (found.distances.double() >= d * (1 - tolerance)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["collapsed", "vit_cls"])
def test_half_inputs_are_compared_with_their_own_values(backend, name, dtype):
    x = ill_conditioned(name)[0][:768].to(dtype)
    oracle.check_knn(backend.knn(x, k=32), x, k=32, name=backend.name)


@pytest.mark.parametrize("shape", [(512, 64, 16), (300, 7, 48), (256, 513, 65)], ids=str)
@pytest.mark.parametrize("name", cases.ADVERSARIAL)
def test_neighbours_of_adversarial_data(backend, name, shape):
    n, dims, k = shape
    x = cases.ADVERSARIAL[name](n, dims)
    oracle.check_knn(backend.knn(x, k=k), x, k=k, name=backend.name)


@pytest.mark.parametrize("name", cases.ADVERSARIAL)
def test_lid_and_gradient_of_adversarial_data(backend, name):
    x = cases.ADVERSARIAL[name](384, 48).requires_grad_()
    k = 24
    found = backend.knn(x, k=k)
    lid = backend.lid(x, k=k)
    weight = torch.ones(len(x))
    _, values = oracle.lid_gradient_given(x, None, found.indices, "mom", weight)
    oracle.check_lid(lid.detach(), values, backend.name, x.dtype)
    loss, _ = backend.loss(x, k=k, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    _, expected = oracle.loss_given(x, None, found.indices, "mom", "l1", None, "sum")
    resolved = oracle.resolved_rows(lid.detach(), values, x.dtype)
    assert gradient.isfinite().all()
    tolerance = tolerances.gradient(backend.name, x.dtype, values[resolved].nan_to_num(0).max().item())
    oracle.check_gradient(gradient[resolved], expected[resolved], tolerance, x.dtype)


def test_shell_is_ordered_by_the_centre_rows(backend):
    """Rows at the centre of a shell 1e-3 thick: the order of the shell's radii, which bfloat16 cannot see."""
    x = cases.narrow_band(1024, 96)
    centre, shell = x[:8], x[64:]
    found = backend.knn(centre, shell, k=100)
    radius = (shell.double()[None] - centre.double()[:, None]).norm(dim=2)
    expected = radius.sort(dim=1).values[:, :100]
    oracle.assert_relative(
        found.distances, expected, tolerances.distance(backend.name, x.dtype, 96), 0.0, "shell radius"
    )


def test_lid_of_a_thousand(backend):
    """a = mean(d_k - d_j), not d_k - mean: near LID 1000 a difference of means loses three digits."""
    g = cases.seeded(11)
    radius = 1 + torch.rand(512, 1, generator=g, dtype=torch.float64) ** 3 * 3e-2
    direction = torch.randn(512, 64, generator=g, dtype=torch.float64)
    y = (direction / direction.norm(dim=1, keepdim=True) * radius).float()
    x = torch.zeros(1, 64)
    truth, _ = oracle.lid(x, y, k=150)
    assert 500 < truth.item() < 5000
    lid = backend.lid(x, y, k=150)
    oracle.check_lid(lid, truth, backend.name, x.dtype)


def test_rows_do_not_depend_on_their_batch(backend):
    """A slice of the queries gives what the whole batch gives, however the batch is centred or tiled."""
    x = cases.tight_clusters(512, 64)
    whole = backend.lid(x, k=32)
    part = backend.lid(x[100:117], x, k=32, self_index=100)
    oracle.check_lid(part, whole[100:117].double(), backend.name, x.dtype)


def test_precision_exact_is_the_default(backend):
    x = cases.tight_clusters(512, 64)
    assert torch.equal(backend.lid(x, k=16), backend.lid(x, k=16, precision="exact"))
    with pytest.raises(ValueError, match="precision must be one of exact, fast, got 'sloppy'"):
        ldk.lid(x, k=16, precision="sloppy")
