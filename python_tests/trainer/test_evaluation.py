"""Probes on features whose answer is known, and the k-NN vote against explicit loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldreg_kernels.trainer.config import AugmentationConfig, DataConfig, EvaluationConfig
from ldreg_kernels.trainer.data import ImageData, Subset, load_data
from ldreg_kernels.trainer.evaluation import (
    Clean,
    Encoded,
    encode,
    evaluate,
    judge,
    knn_accuracy,
    linear_probe_accuracy,
)
from ldreg_kernels.trainer.views import build_views


def blobs(rows: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes in the plane: [3 * rows, 2] and labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, -10.0]])
    labels = torch.arange(3).repeat_interleave(rows)
    return centres[labels] + spread * torch.randn(3 * rows, 2, generator=generator), labels


def test_separable_classes_are_separated() -> None:
    (train, train_labels), (test, test_labels) = blobs(30, 0.5, 0), blobs(20, 0.5, 1)
    assert linear_probe_accuracy(train, train_labels, test, test_labels) == 1.0
    assert knn_accuracy(train, train_labels, test, test_labels, k=5, temperature=0.07) == 1.0


def test_features_without_information_give_chance() -> None:
    labels = torch.arange(10).repeat(30)
    train, test = (torch.randn(300, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert linear_probe_accuracy(train, labels, test, labels) < 0.25
    assert linear_probe_accuracy(torch.ones(300, 8), labels, torch.ones(300, 8), labels) == pytest.approx(0.1)


def test_knn_is_the_weighted_vote() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(60, 4, generator=generator), torch.randn(40, 4, generator=generator)
    train_labels, test_labels = torch.arange(60) % 3, torch.arange(40) % 3
    hits = 0
    for i in range(40):
        cosines = [float(torch.cosine_similarity(test[i], row, dim=0)) for row in train]
        nearest = sorted(range(60), key=lambda j: -cosines[j])[:7]
        votes = [0.0, 0.0, 0.0]
        for j in nearest:
            votes[int(train_labels[j])] += math.exp(cosines[j] / 0.2)
        hits += votes.index(max(votes)) == int(test_labels[i])
    assert knn_accuracy(train, train_labels, test, test_labels, k=7, temperature=0.2) == hits / 40


def test_knn_weights_survive_a_tiny_temperature() -> None:
    """exp(1 / 0.001) overflows; the vote is then simply the nearest neighbour's."""
    train, labels = blobs(5, 0.1, 0)
    assert knn_accuracy(train, labels, train, labels, k=15, temperature=0.001) == 1.0
    # Nobody within reach: exp(-1.0 / 0.001) is 0 for every neighbour, and yet the nearest decides.
    assert knn_accuracy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1]),
                        torch.tensor([[0.01, 1.0]]), torch.tensor([0]), k=2, temperature=0.001) == 1.0  # fmt: skip


def test_one_class_has_no_accuracy_but_a_geometry() -> None:
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    part = Encoded(features, torch.zeros(60, dtype=torch.int64), [])
    result = judge(part, part, EvaluationConfig(lid_k=8))
    assert math.isnan(result.probe_accuracy)
    assert math.isnan(result.knn_accuracy)
    assert result.geometry.effective_rank > 3


def clean_of(data: ImageData) -> Clean:
    views = build_views(AugmentationConfig(), method="simclr", view_count=2, data=data)
    return Clean(views.clean_crop, views.device, torch.device("cpu"))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataConfig())


def test_encoding_restores_the_mode_and_does_not_depend_on_the_batch_size(digits: ImageData) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5))
    some, clean = Subset(digits.test, np.arange(33)), clean_of(digits)
    encoded = encode(encoder, some, clean, batch_size=7)
    assert encoder.training
    assert not encoded.features.requires_grad
    assert encoded.labels.tolist() == [digits.test.label(i) for i in range(33)]
    torch.testing.assert_close(encoded.features, encode(encoder, some, clean, batch_size=33).features)
    assert torch.equal(encoder[2].running_mean, torch.zeros(5))  # nothing was learnt from the held-out images


def test_pixels_as_features_are_a_known_baseline(digits: ImageData) -> None:
    """Logistic regression on the raw digits is right about 95 times in 100; a broken probe would not be."""
    result = evaluate(nn.Flatten(), digits, clean_of(digits), EvaluationConfig())
    assert result.probe_accuracy > 0.93
    assert result.knn_accuracy > 0.93
    assert result.test_images == len(digits.test) == 449
    assert result.unreadable == ()
    assert 10 < result.geometry.effective_rank < 64
    assert result.spectrum == sorted(result.spectrum, reverse=True)
    assert set(result.numbers()) >= {"probe_accuracy", "effective_rank", "lid_geometric_mean"}
