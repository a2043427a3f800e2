"""The rest of the published module in `compat`: `gmean`, `get_lid_r`, `mle_batch`, `mle_single`, and all signatures."""

import inspect
import sys

import cases
import numpy as np
import published
import pytest
import tolerances
import torch

from ldreg_kernels import compat

# As published: argument names, and defaults where there are any.
MODE = "use_mm_for_euclid_dist_if_necessary"
SIGNATURES = {
    "gmean": {"input_x": ..., "dim": 0},
    "get_lid_r": {"data": ..., "reference": ...},
    "lid_mle": {"data": ..., "reference": ..., "k": 20, "get_idx": False, "compute_mode": MODE},
    "lid_mom_est": {"data": ..., "reference": ..., "k": ..., "get_idx": False, "compute_mode": MODE},
    "lid_mom_est_eps": {"data": ..., "reference": ..., "k": ..., "get_idx": False},
    "mle_batch": {"data": ..., "batch": ..., "k": ...},
    "mle_single": {"data": ..., "x": ..., "k": 20, "dist": True, "metric": "euclidean"},
}
FLOAT64 = 1e-12  # relative; sums of some tens of logarithms, well conditioned
FLOAT32 = 1e-6  # the same, taken in float32


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_published_ones(name):
    parameters = inspect.signature(getattr(compat, name)).parameters
    found = {p.name: ... if p.default is p.empty else p.default for p in parameters.values()}
    assert list(found.items()) == list(SIGNATURES[name].items())


def test_gmean():
    x = torch.tensor([[1.0, 3.0], [4.0, 27.0], [16.0, 1.0]], dtype=torch.float64, requires_grad=True)
    mean = compat.gmean(x)
    torch.testing.assert_close(mean.detach(), torch.tensor([4.0, 81 ** (1 / 3)]).double(), rtol=1e-7, atol=0.0)
    assert torch.equal(compat.gmean(x[:, 0], dim=0), mean[0])
    torch.testing.assert_close(compat.gmean(x, 1)[0].item(), 3**0.5)
    assert torch.autograd.gradcheck(compat.gmean, (x,))
    assert compat.gmean(torch.tensor([1.0, torch.nan])).isnan()


# ------------------------------------------------------------------------------------------------- get_lid_r


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_get_lid_r(dtype):
    data, reference = cases.features(20, 12).to(dtype), cases.features(33, 12, seed=7).to(dtype)
    r, ordered, idx = compat.get_lid_r(data.reshape(20, 3, 4), reference.reshape(33, 3, 4))
    truth = published.distances(data, reference)
    assert r.dtype == ordered.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(r.double(), truth, rtol=tolerances.distance("cpu", dtype, 12), atol=0.0)
    assert torch.equal(idx, published.order(data, reference))
    assert torch.equal(ordered, r.gather(1, idx))


def test_get_lid_r_is_differentiable_on_both_sides():
    x, y = cases.normal(4, 3, dtype=torch.float64), cases.normal(5, 3, 1, torch.float64)
    x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: compat.get_lid_r(x, y)[:2], (x, y))


@pytest.mark.parametrize(("B", "N"), [(0, 3), (3, 0), (2, 1)])
def test_get_lid_r_of_little(B, N):
    r, ordered, idx = compat.get_lid_r(torch.ones(B, 2), torch.ones(N, 2))
    assert r.shape == ordered.shape == idx.shape == (B, N)
    assert (r == 0).all()
    assert idx.dtype == torch.int64


def test_get_lid_r_refuses_what_the_estimators_refuse():
    with pytest.raises(TypeError, match=r"^reference must have the dtype of data"):
        compat.get_lid_r(torch.ones(2, 2), torch.ones(2, 2).double())


# ------------------------------------------------------------------------------------------------- numpy


def hill(data, batch, k):
    """LID [B], float64, of arrays that are float32 already."""
    r = published.distances(torch.from_numpy(batch), torch.from_numpy(data)).sort(dim=1).values
    k = min(k, len(data) - 1)
    return torch.stack([published.hill(row[1 : k + 1], k) for row in r]).numpy()


@pytest.mark.parametrize("k", [1, 2, 7, 39, 100, -3])
def test_mle_batch(k):
    data, batch = cases.features(40, 6).numpy(), cases.features(11, 6, seed=7).numpy()
    lid = compat.mle_batch(data, batch, k)
    assert isinstance(lid, np.ndarray)
    assert lid.dtype == np.float64
    np.testing.assert_allclose(lid, hill(data, batch, k), rtol=FLOAT64)
    assert np.array_equal(lid, compat.mle_batch(data.tolist(), batch.astype(np.float64), np.int64(k)))
    single = compat.mle_single(data, batch[3], k)
    assert isinstance(single, np.float64)
    np.testing.assert_allclose(single, lid[3], rtol=FLOAT64)
    assert compat.mle_single(data, batch[3:], k) == single


def test_mle_batch_of_copies():
    """Among the nearest k a distance of 0 gives 0; k zeros give NaN."""
    data = np.zeros((6, 2))
    data[4:] = [[1, 0], [2, 0]]
    assert compat.mle_batch(data, data[:1], 4).tolist() == [0.0]
    assert np.isnan(compat.mle_batch(data, data[:1], 3)).tolist() == [True]
    assert compat.mle_batch(data, data[:0], 3).shape == (0,)


def test_mle_single_of_distances():
    """dist=False: data holds distances, none is dropped, k is the numerator alone."""
    r = np.array([[4.0, 1.0, 2.0], [9.0, 9.0, 9.0]])
    lid = compat.mle_single(r, None, k=5, dist=False)
    assert lid.dtype == np.float32
    np.testing.assert_allclose(lid, -5 / np.log(1 / 8), rtol=FLOAT32)


def test_mle_single_of_another_metric():
    pytest.importorskip("scipy")
    data, x = cases.features(30, 5).numpy(), cases.features(2, 5, seed=7).numpy()
    r = torch.from_numpy(np.abs(data.astype(np.float64) - x[:1]).sum(axis=1)).sort().values
    found = compat.mle_single(data, x, 9, metric="cityblock")
    np.testing.assert_allclose(found, published.hill(r[1:10], 9).item(), rtol=FLOAT64)
    np.testing.assert_allclose(
        compat.mle_single(data, x, 9, metric="euclid"), compat.mle_single(data, x, 9), rtol=FLOAT64
    )


def test_scipy_is_needed_for_another_metric_only(monkeypatch):
    data = cases.features(30, 5).numpy()
    expected = compat.mle_single(data, data[0], 9)
    monkeypatch.setitem(sys.modules, "scipy.spatial.distance", None)
    assert compat.mle_single(data, data[0], 9) == expected
    with pytest.raises(ImportError, match=r"^metric='cosine' needs scipy"):
        compat.mle_single(data, data[0], 9, metric="cosine")


def test_bad_arrays():
    data = np.ones((5, 3))
    for call, exception, message in [
        (lambda: compat.mle_batch(data[0], data, 3), ValueError, r"^data must be 2-D .*\(3,\)$"),
        (lambda: compat.mle_batch(data, data[0], 3), ValueError, r"^batch must be 2-D .*\(3,\)$"),
        (lambda: compat.mle_batch(data, data[:, :2], 3), ValueError, r"^batch must have the same number of features"),
        (lambda: compat.mle_batch(data, data, 3.0), TypeError, r"^k must be an int, got float 3\.0$"),
        (lambda: compat.mle_batch(data, data, 0), ValueError, r"^k must leave at least one neighbour.*k = 0$"),
        (lambda: compat.mle_batch(data[:1], data, 3), ValueError, r"^k must leave at least one neighbour.*k = 0$"),
        (lambda: compat.mle_single(data, data[0, :2]), ValueError, r"^x must have the same number of features"),
        (lambda: compat.mle_single(data, data[:0]), ValueError, r"^x must have at least one row"),
        (lambda: compat.mle_single(data[:0], None, dist=False), ValueError, r"^data must have at least one row"),
        (lambda: compat.mle_single(data, data[None]), ValueError, r"^x must be 2-D"),
    ]:
        with pytest.raises(exception, match=message):
            call()
