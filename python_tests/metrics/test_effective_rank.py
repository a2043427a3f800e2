"""Effective rank of spectra for which it is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
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
