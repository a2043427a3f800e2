"""Effective rank of spectra for which it is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldreg_kernels.metrics import effective_rank


def orthogonal_columns(n: int = 16) -> Tensor:
    """[n, n - 1] orthonormal columns, each of mean zero."""
    z = torch.randn(n, n - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(z - z.mean(0)).Q


@pytest.mark.parametrize("variant", ["cov", "corr", "gram", "sv"])
@pytest.mark.parametrize("directions", [1, 3, 15])
def test_equal_spectrum_counts_directions(directions: int, variant: str) -> None:
    assert effective_rank(orthogonal_columns()[:, :directions], variant=variant) == pytest.approx(directions)


def test_unequal_spectrum_is_exp_of_its_entropy() -> None:
    """Variances 3 : 1, so p = (3/4, 1/4); as singular values sqrt(3) : 1."""
    z = orthogonal_columns()[:, :2] * torch.tensor([math.sqrt(3), 1.0], dtype=torch.float64)
    p = 0.75
    expected = math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert effective_rank(z, variant="cov") == pytest.approx(expected)
    assert effective_rank(z, variant="gram") == pytest.approx(expected)
    p = math.sqrt(3) / (1 + math.sqrt(3))
    expected = math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert effective_rank(z, variant="sv") == pytest.approx(expected)
    assert effective_rank(z, variant="corr") == pytest.approx(2.0)  # scale of a feature does not count there


def test_offset_matters_to_the_uncentred_variants_only() -> None:
    z = orthogonal_columns()[:, :4]
    for variant in ("cov", "corr"):
        assert effective_rank(z + 50, variant=variant) == pytest.approx(4.0, rel=1e-6)
    for variant in ("gram", "sv"):
        assert effective_rank(z + 50, variant=variant) < 2.0


def test_collapsed_features() -> None:
    constant = torch.full((8, 5), 3.7)
    assert effective_rank(constant, variant="cov") == 0.0
    assert effective_rank(constant, variant="corr") == 0.0
    assert effective_rank(constant, variant="gram") == pytest.approx(1.0)


def test_dead_features_do_not_count_in_corr() -> None:
    z = orthogonal_columns()[:, :3] + 0.1
    dead = torch.full((16, 4), 0.1, dtype=torch.float64)  # 0.1 has no exact mean: its deviation is rounding, not 0
    assert effective_rank(torch.cat([z, dead], 1), variant="corr") == pytest.approx(3.0)


@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_lies_between_one_and_the_number_of_directions(n: int, d: int, seed: int) -> None:
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    assert 1 - 1e-9 <= effective_rank(z, variant="cov") <= min(n - 1, d) + 1e-9
    assert 1 - 1e-9 <= effective_rank(z, variant="sv") <= min(n, d) + 1e-9


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant must be one of cov, corr, gram, sv, got 'pca'"):
        effective_rank(torch.ones(2, 2), variant="pca")  # type: ignore[arg-type]


# ---------------------------------------------------------------- equal rows, and features of any size

DTYPES = {  # with powers of ten that its numbers reach
    torch.float64: (-300, 300),
    torch.float32: (-40, 38),  # subnormal at the lower end
    torch.bfloat16: (-38, 38),
    torch.float16: (-4, 4),
}
VARIANTS = ("cov", "corr", "gram", "sv")


@given(st.sampled_from(list(DTYPES)), st.integers(1, 40), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=100)
def test_equal_rows_have_rank_zero_or_one_at_every_size(
    dtype: torch.dtype, n: int, d: int, where: float, seed: int
) -> None:
    low, high = DTYPES[dtype]
    row = torch.rand(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
    z = (row * 10.0 ** (low + where * (high - low))).clamp(max=torch.finfo(dtype).max).to(dtype).repeat(n, 1)
    assert effective_rank(z, variant="cov") == 0.0
    assert effective_rank(z, variant="corr") == 0.0
    assert effective_rank(z, variant="gram") == pytest.approx(1.0, abs=1e-9)  # one direction: the row's own
    assert effective_rank(z, variant="sv") == pytest.approx(1.0, abs=1e-9)  # 1e-16 of N, D <= 40 singular values


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_constant_up_to_rounding_do_not_count_in_corr(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 24, generator=generator, dtype=torch.float64).to(dtype).double()
    step = torch.finfo(dtype).eps * torch.exp2(row.abs().log2().floor())  # to the next number of the dtype
    flips = torch.randint(0, 2, (50, 24), generator=generator)
    z = row + flips * step
    assert torch.equal(z, z.to(dtype).double())
    z[:, :3] += torch.randn(50, 3, generator=generator)
    assert effective_rank(z.to(dtype), variant="corr") == pytest.approx(3.0, abs=0.5)  # chance correlation of 50 rows
    assert effective_rank((row + 8 * flips * step).to(dtype), variant="corr") > 15


@given(st.sampled_from(list(DTYPES)), st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=100)
def test_is_the_same_at_every_size(dtype: torch.dtype, where: float, seed: int) -> None:
    low, high = DTYPES[dtype]
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = (z + 3) * 10.0 ** (low + where * (high - low)) / z.add(3).abs().max()
    z = z.to(dtype)
    largest = z.double().abs().max().item()
    plain = z.double() / largest  # the very same numbers, subnormal ones too, near 1
    for variant in VARIANTS:
        assert effective_rank(z, variant=variant) == pytest.approx(effective_rank(plain, variant=variant), rel=1e-9)


def test_columns_of_very_different_size_count_alike_in_corr() -> None:
    z = orthogonal_columns()[:, :3] * torch.tensor([1e-300, 1.0, 1e300], dtype=torch.float64)
    assert effective_rank(z, variant="corr") == pytest.approx(3.0)
    assert effective_rank(z, variant="cov") == pytest.approx(1.0)
