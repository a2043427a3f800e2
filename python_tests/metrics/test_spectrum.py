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


@pytest.mark.parametrize("scale", [1e-305, 1e-160, 1e-20, 1e20, 1e160, 1e305])
@pytest.mark.parametrize("center", [False, True])
def test_singular_values_at_any_size(scale: float, center: bool) -> None:
    expected = torch.tensor([7.0, 2.0, 0.5], dtype=torch.float64)
    found = singular_values(with_singular_values([7.0, 2.0, 0.5]) * scale, center=center)
    torch.testing.assert_close(found[:3] / scale, expected)
    assert (found[3:] <= 1e-14 * found[0]).all()


def test_eigenvalues_wherever_float64_holds_them() -> None:
    """A square: 4e152 and 4e-152 are, 1e400 is not."""
    z = with_singular_values([2.0, 1.0])
    for scale in (1e-150, 1e150):
        expected = torch.tensor([4 / 12, 1 / 12], dtype=torch.float64)
        torch.testing.assert_close(covariance_spectrum(z * scale)[:2] / scale / scale, expected)
    largest = covariance_spectrum(z * 2e154)[0]  # its square is 1.6e309, a twelfth of that is a number
    assert largest.item() == pytest.approx(1.3333333e308)
    assert covariance_spectrum(z * 1e200)[0] == torch.inf
    assert (covariance_spectrum(z * 1e-200) == 0).all()


def test_the_whole_range_of_float64_is_centred() -> None:
    """The difference of these two rows is no float64 number, half of it is."""
    z = torch.tensor([[1.5e308, 0.0], [-1.5e308, 0.0]], dtype=torch.float64)
    assert singular_values(z)[0] == torch.inf  # 2.1e308
    found = singular_values(z / 4, center=True)
    assert found[0].item() == pytest.approx(1.5e308 / 4 * 2**0.5)


def test_equal_rows_have_no_spectrum_and_an_offset_costs_no_digits() -> None:
    assert (covariance_spectrum(torch.full((7, 3), 0.1, dtype=torch.float64)) == 0).all()
    z = with_singular_values([3.0, 1.0]).mul(2.0**30).round() / 2.0**30  # so that the offset can be added exactly
    far = z + 2.0**22
    torch.testing.assert_close(singular_values(far, center=True), singular_values(z, center=True), rtol=0, atol=1e-14)
