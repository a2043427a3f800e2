"""Data, backbone and head: shapes, ranges, and the properties their comments claim."""

from __future__ import annotations

import pytest
import torch
from ldreg_kernels.trainer.backbones import build_encoder
from ldreg_kernels.trainer.heads import simclr_projector

from ldreg_kernels.trainer.config import (
    ConfigError,
    DataConfig,
    EncoderConfig,
    TrainConfig,
)
from ldreg_kernels.trainer.data import load_data, training_loader
from ldreg_kernels.trainer.methods import build_method


def test_split_is_whole_disjoint_stratified_and_seeded() -> None:
    data, again, other = (load_data(DataConfig(test_fraction=0.25), seed) for seed in (0, 0, 1))
    assert len(data.train_images) + len(data.test_images) == 1797
    assert data.train_images.shape[1:] == (1, 8, 8)
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    share = data.test_labels.bincount() / (data.test_labels.bincount() + data.train_labels.bincount())
    torch.testing.assert_close(share, torch.full((10,), 0.25), atol=0.01, rtol=0)
    assert torch.equal(data.test_images, again.test_images)
    assert not torch.equal(data.test_images, other.test_images)


def test_loader_drops_the_smaller_batch_and_refuses_a_larger_one() -> None:
    data = load_data(DataConfig(test_fraction=0.25), 0)  # 1347 to train on
    assert [len(images) for (images,) in training_loader(data, 256)] == [256] * 5
    with pytest.raises(ConfigError, match="batch_size: must be at most 1347"):
        training_loader(data, 2000)


def test_resnet18_has_its_size_and_the_small_stem() -> None:
    encoder = build_encoder(EncoderConfig(), channels=1)
    # torchvision's ResNet-18 without its classifier has 11 176 512 weights; the stem is 3 x 3 x 1 in place of
    # 7 x 7 x 3.
    assert sum(p.numel() for p in encoder.parameters()) == 11_176_512 - 64 * (49 * 3 - 9)
    assert encoder.network.embedder(torch.zeros(1, 1, 8, 8)).shape == (1, 64, 8, 8)  # no stride, no pooling
    assert encoder(torch.zeros(2, 1, 8, 8)).shape == (2, 512)
    std = encoder.network.embedder.embedder.convolution.weight.std().item()
    assert std == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)  # He initialisation, fan out


def test_projector_shape_and_its_frozen_shift() -> None:
    head = simclr_projector(32, 64, 16)
    assert head(torch.randn(5, 32)).shape == (5, 16)
    assert [n for n, p in head.named_parameters() if not p.requires_grad] == ["4.bias"]


def test_simclr_hands_out_the_features_of_both_views(tiny: TrainConfig) -> None:
    torch.manual_seed(0)
    method = build_method(tiny, channels=1)
    view1, view2 = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)
    loss, features = method(view1, view2)
    assert features.shape == (12, 64)
    assert features.requires_grad
    torch.testing.assert_close(features, method.encoder(torch.cat([view1, view2])))
    loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
