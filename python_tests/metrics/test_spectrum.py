"""Spectra of matrices whose singular values are known by construction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldreg_kernels.metrics import covariance_spectrum, singular_values


def with_singular_values(values: list[float], n: int = 12, d: int = 5, seed: int = 0) -> Tensor:
    """A centred [n, d] matrix with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(n, len(values), generator=generator, dtype=torch.float64)
    u = torch.linalg.qr(left - left.mean(0)).Q  # columns orthonormal and orthogonal to the constant vector
    v = torch.linalg.qr(torch.randn(d, len(values), generator=generator, dtype=torch.float64)).Q
    return u @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ v.T


def test_singular_values_come_back() -> None:
    expected = torch.tensor([7.0, 2.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(singular_values(with_singular_values([7.0, 2.0, 0.5])), expected)


def test_centring_removes_an_offset_and_nothing_else() -> None:
    z = with_singular_values([3.0, 1.0])
    torch.testing.assert_close(singular_values(z + 1000.0, center=True), singular_values(z), atol=1e-9, rtol=0)
    assert singular_values(z + 1000.0)[0] > 1000


def test_covariance_spectrum_is_that_of_the_covariance_matrix() -> None:
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.linalg.eigvalsh(torch.cov(z.T, correction=0)).flip(0)
    torch.testing.assert_close(covariance_spectrum(z), expected)


def test_small_end_of_the_spectrum_survives() -> None:
    """1e-18 of the largest eigenvalue: forming the covariance first would leave rounding noise here."""
    spectrum = covariance_spectrum(with_singular_values([1.0, 1e-9]))
    assert (spectrum[1] / spectrum[0]).item() == pytest.approx(1e-18, rel=1e-5)


def test_result_is_float64_and_detached() -> None:
    z = torch.randn(5, 3, requires_grad=True)
    assert singular_values(z).dtype == torch.float64
    assert not covariance_spectrum(z).requires_grad


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.ones(3), ValueError, r"features must have shape \[N, D\]"),
        (torch.ones(0, 3), ValueError, r"got \[0, 3\]"),
        (torch.ones(2, 2).long(), TypeError, "floating point tensor, got torch.int64"),
        (torch.tensor([[float("nan"), 1.0]]), ValueError, "features must be finite"),
    ],
)
def test_bad_input_names_the_argument(features: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        singular_values(features)
