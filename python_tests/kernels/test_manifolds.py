"""Pointwise agreement with scikit-dimension on its own manifolds, and with theory where theory is exact.

scikit-dimension's MOM is our `mom_amsaleg`, its MLE our `hill` (unbiased=True: `hill_unbiased`), both over
the k nearest neighbours with the point itself left out, so they are compared point by point: nominal
dimensions are biased by curvature and edges. The other estimators follow through the exact conversions.
"""

import os
from functools import cache

import cases
import numpy as np
import pytest
import tolerances
import torch
from sklearn.neighbors import NearestNeighbors

os.environ.setdefault("MPLBACKEND", "Agg")
import skdim

N, K = 2048, 64


def benchmark_manifold(generator, dim, d):
    """A sample of skdim.datasets.BenchmarkManifolds, whose constructor asks for pandas to print a table we do
    not need.
    """
    maker = object.__new__(skdim.datasets.BenchmarkManifolds)
    maker.random_state = np.random.RandomState(0)
    return getattr(maker, generator)(N, dim, d)


MANIFOLDS = {
    "hyperBall": lambda: skdim.datasets.hyperBall(N, 10, random_state=0),
    "hyperSphere": lambda: skdim.datasets.hyperSphere(N, 7, random_state=0),
    "M7_Roll": lambda: benchmark_manifold("_gen_roll_data", 3, 2),
    "M10b_Cubic": lambda: benchmark_manifold("_gen_cubic_data", 18, 17),
    "M12_Norm": lambda: benchmark_manifold("_gen_norm_data", 20, 20),
}


@cache
def sample(name, embedded):
    """(x float32, scikit-dimension's LID of the very same float32 values in float64 by estimator)."""
    x = torch.from_numpy(MANIFOLDS[name]())
    if embedded:  # isometrically: orthonormal columns in 2048 dimensions, then far from the origin
        columns, _ = torch.linalg.qr(cases.normal(2048, x.shape[1], seed=6, dtype=torch.float64))
        x = x @ columns.T + 50.0
    x = x.float()
    points = x.double().numpy()
    # scikit-dimension takes its neighbours from scikit-learn's matrix-product form in high dimensions;
    # centring (exact in effect: distances do not change) keeps that form's float64 error at 1e-14 there.
    points = points - points.mean(0)
    arrays = NearestNeighbors(n_neighbors=K).fit(points).kneighbors()
    pointwise = {
        "mom_amsaleg": skdim.id.MOM(),
        "hill": skdim.id.MLE(),
        "hill_unbiased": skdim.id.MLE(unbiased=True),
    }
    truth = {
        name: torch.from_numpy(estimator.fit(points, precomputed_knn_arrays=arrays, n_neighbors=K).dimension_pw_)
        for name, estimator in pointwise.items()
    }
    truth["mom"] = (1 + truth["mom_amsaleg"]) * (K - 1) / K - 1
    return x, truth


def assert_agrees(lid, truth):
    error = (lid.double() - truth).abs()
    bound = tolerances.SKDIM * (1 + truth)
    assert (error <= bound).all(), f"off by {(error / bound).max().item():.2f} times the tolerance"


@pytest.mark.parametrize("embedded", [False, True], ids=["plain", "embedded_2048"])
@pytest.mark.parametrize("name", MANIFOLDS)
def test_pointwise_agreement_with_scikit_dimension(backend, name, embedded):
    x, truth = sample(name, embedded)
    rows = N
    if (
        backend.name == "reference"
    ):  # held to it in float64, where it is the truth of all other tests; too slow for all rows
        x, rows = x.double(), 64
    if backend.emulated:
        rows = 256  # it takes minutes for all of them; the next test asks for every row, once
    for estimator in truth:
        lid = backend.lid(x[:rows], x, k=K, estimator=estimator, self_index=0)
        assert_agrees(lid, truth[estimator][:rows])


@pytest.mark.parametrize("name", MANIFOLDS)
def test_agreement_with_the_batch_as_its_own_references(backend, name):
    x, truth = sample(name, False)
    if backend.name == "reference":
        x = x.double()
    assert_agrees(backend.lid(x, k=K), truth["mom"])


def test_scikit_dimension_is_called_the_public_way():
    """The same numbers as `fit(X, n_neighbors=k)`, so that nothing depends on how the neighbours were handed
    over.
    """
    points = MANIFOLDS["hyperBall"]().astype(np.float32).astype(np.float64)
    _, truth = sample("hyperBall", False)
    for name, estimator in {"mom_amsaleg": skdim.id.MOM(), "hill": skdim.id.MLE()}.items():
        direct = torch.from_numpy(estimator.fit(points, n_neighbors=K).dimension_pw_)
        assert ((direct - truth[name]).abs() <= tolerances.LID_FLOAT64 * (1 + truth[name]) ** 2).all()


# ------------------------------------------------------------------------------------------------- theory


@pytest.mark.parametrize("dimension", [2, 5, 12])
def test_uniform_ball_has_the_moments_theory_gives(backend, dimension):
    """d_j / d_k = U^(1 / ID): E[m / d_k] = ID / (ID + 1), E[hill] = ID (k - 1) / (k - 2), by a seeded z-test.

    200 balls far apart, each searched from its centre: 200 independent draws. (40 where a GPU is emulated: minutes.)
    """
    balls, points, k = 40 if backend.emulated else 200, 150, 50
    g = cases.seeded(12)
    centres = torch.arange(balls, dtype=torch.float64)[:, None] * 100.0 * torch.eye(1, dimension, dtype=torch.float64)
    direction = torch.randn(balls, points, dimension, generator=g, dtype=torch.float64)
    radius = torch.rand(balls, points, 1, generator=g, dtype=torch.float64) ** (1 / dimension)
    y = centres[:, None] + direction / direction.norm(dim=2, keepdim=True) * radius
    x, y = centres, y.reshape(-1, dimension)

    lid = backend.lid(x, y, k=k).double()
    assert_mean(lid / (1 + lid), dimension / (dimension + 1))
    hill = backend.lid(x, y, k=k, estimator="hill").double()
    assert_mean(hill, dimension * (k - 1) / (k - 2))
    unbiased = backend.lid(x, y, k=k, estimator="hill_unbiased").double()
    assert_mean(unbiased, dimension)


def assert_mean(draws, expected):
    z = (draws.mean() - expected) / (draws.std() / len(draws) ** 0.5)
    assert abs(z.item()) < tolerances.Z_SCORE, (
        f"mean {draws.mean().item():.5f}, expected {expected:.5f}, z = {z.item():.2f}"
    )
