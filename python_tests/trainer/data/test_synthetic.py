"""Manifolds of known dimension: the LID of their raw pixels is that dimension."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ldreg_kernels as ldk
from ldreg_kernels.trainer.config.data import DataConfig, SyntheticConfig
from ldreg_kernels.trainer.data import labels_of, load_data
from ldreg_kernels.trainer.data.synthetic import draw


def pixels(**settings: object) -> torch.Tensor:
    images = draw(SyntheticConfig(**settings)).images
    return torch.from_numpy(images.reshape(len(images), -1)).float()  # [N, pixels]


def lid(x: torch.Tensor) -> float:
    return ldk.lid(x, k=32).log().mean().exp().item()


# What 32 neighbours of 2,000 points leave: in a normal distribution, rows at the rim have their neighbours on one side,
# where it is denser, and look higher-dimensional (13 %); a torus bends within such a ball (11 %); a sphere less (4 %).
TOLERANCE = {"linear": 0.15, "sphere": 0.05, "torus": 0.12}


@pytest.mark.parametrize("manifold", TOLERANCE)
@pytest.mark.parametrize("dimension", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_lid_of_the_pixels_is_the_dimension(manifold: str, dimension: int, channels: int) -> None:
    x = pixels(manifold=manifold, intrinsic_dim=dimension, channels=channels)
    assert lid(x) == pytest.approx(dimension, rel=TOLERANCE[manifold])


@pytest.mark.parametrize(("manifold", "directions"), [("linear", 3), ("sphere", 4), ("torus", 6)])
def test_a_manifold_spans_as_many_directions_as_it_says(manifold: str, directions: int) -> None:
    x = pixels(manifold=manifold, intrinsic_dim=3, images=500).double()
    variances = torch.linalg.svdvals(x - x.mean(0)) ** 2 / len(x)
    # Rounding to grey levels has variance 1/12 in each direction; 256 pixels of 500 images stay well below 1.
    assert (variances > 1).sum() == directions


def test_noise_fills_all_directions() -> None:
    assert lid(pixels(intrinsic_dim=2, noise=30.0)) > 10


def test_classes_are_equally_full_and_the_seed_decides() -> None:
    data = load_data(DataConfig(dataset="synthetic", synthetic=SyntheticConfig(images=400, channels=3, size=8)))
    assert (data.classes, data.channels, data.image_size) == (4, 3, (8, 8))
    assert np.bincount(labels_of(data.train)).tolist() == [75] * 4
    assert np.bincount(labels_of(data.test)).tolist() == [25] * 4
    images = [draw(SyntheticConfig(images=100, seed=seed)).images for seed in (0, 0, 1)]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
