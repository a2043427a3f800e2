"""The heads layer by layer: which have biases, how they start, how fast their statistics move."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import nn

from ldreg_kernels.trainer.networks.heads import byol_predictor, byol_projector, simclr_projector


def layers(head: nn.Sequential) -> list[tuple[str, int, int, bool] | str]:
    """Linear layers with their widths and whether they have a bias; the others by name."""
    return [
        ("Linear", m.in_features, m.out_features, m.bias is not None) if isinstance(m, nn.Linear) else type(m).__name__
        for m in head
    ]


def test_simclr_head() -> None:
    head = simclr_projector(32, 64, 16)
    hidden = [("Linear", 32, 64, False), "BatchNorm1d", "ReLU"]
    assert layers(head) == [*hidden, ("Linear", 64, 16, False), "BatchNorm1d"]
    assert [n for n, p in head.named_parameters() if not p.requires_grad] == ["4.bias"]
    assert head(torch.randn(5, 32)).shape == (5, 16)


def test_simclr_tuned_head() -> None:
    head = simclr_projector(32, 64, 16, layers=3, hidden_bias=True)
    first = [("Linear", 32, 64, True), "BatchNorm1d", "ReLU"]
    second = [("Linear", 64, 64, True), "BatchNorm1d", "ReLU"]
    assert layers(head) == [*first, *second, ("Linear", 64, 16, False), "BatchNorm1d"]
    assert [n for n, p in head.named_parameters() if not p.requires_grad] == ["7.bias"]
    assert head(torch.randn(5, 32)).shape == (5, 16)


def test_simclr_heads_need_two_layers() -> None:
    with pytest.raises(ValueError, match="layers must be at least 2, got 1"):
        simclr_projector(32, 64, 16, layers=1)


def test_byol_heads() -> None:
    projector, predictor = byol_projector(32, 64, 16), byol_predictor(16, 48)
    assert layers(projector) == [("Linear", 32, 64, True), "BatchNorm1d", "ReLU", ("Linear", 64, 16, False)]
    assert layers(predictor) == [("Linear", 16, 48, True), "BatchNorm1d", "ReLU", ("Linear", 48, 16, False)]
    assert all(p.requires_grad for head in (projector, predictor) for p in head.parameters())
    assert predictor(projector(torch.randn(5, 32))).shape == (5, 16)


def test_linear_layers_start_at_sigma_001_for_simclr_and_at_torchs_default_for_byol() -> None:
    torch.manual_seed(0)
    for linear in simclr_projector(256, 256, 256, layers=3):
        if isinstance(linear, nn.Linear):
            # Of n normal numbers the standard deviation has sigma 1 / sqrt(2n).
            assert linear.weight.std().item() == pytest.approx(0.01, rel=5 / sqrt(2 * 256**2))
    for linear in byol_projector(256, 256, 256):
        if isinstance(linear, nn.Linear):
            bound = 1 / sqrt(256)
            assert 0.99 * bound < linear.weight.abs().max() <= bound
            assert linear.weight.std().item() == pytest.approx(bound / sqrt(3), rel=0.02)


def test_byol_keeps_nine_tenths_of_the_running_statistics() -> None:
    head = byol_projector(8, 4, 2)
    inputs = torch.randn(64, 8)
    head(inputs)
    torch.testing.assert_close(head[1].running_mean, 0.1 * head[0](inputs).mean(0))
