"""Judging a frozen encoder: linear probe, k-NN accuracy, effective rank and LID of its features.

All of it looks at clean images (no augmentation) through the encoder in evaluation mode. The probes are
scikit-learn's, which converge to one answer, so two evaluations of the same weights agree. The labels of the
held-out images are used for scoring only; no setting is chosen on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ..metrics import covariance_spectrum, effective_rank, lid_statistics
from .config import EvaluationConfig
from .data import ImageData


@dataclass(frozen=True)
class Geometry:
    """Shape of a set of features, without labels; fields as in the metrics room."""

    effective_rank: float
    lid_geometric_mean: float
    lid_arithmetic_mean: float
    lid_variance: float
    lid_dropped: int

    def numbers(self) -> dict[str, float]:
        """The fields, for a log."""
        return dict(vars(self))


@dataclass(frozen=True)
class Evaluation:
    """What a finished encoder is judged by; accuracies in [0, 1], on held-out images."""

    probe_accuracy: float
    knn_accuracy: float
    geometry: Geometry
    spectrum: list[float]  # covariance eigenvalues, largest first
    test_images: int  # how many images the accuracies stand on

    def numbers(self) -> dict[str, float]:
        """Accuracies and geometry, flat, for a table or a log."""
        return {
            "probe_accuracy": self.probe_accuracy,
            "knn_accuracy": self.knn_accuracy,
            **self.geometry.numbers(),
        }


@torch.no_grad()
def encode(encoder: nn.Module, images: Tensor, device: torch.device, batch_size: int = 512) -> Tensor:
    """Features of clean images, with the encoder in evaluation mode for the time being.

    Args:
        encoder: images [N, C, H, W] to features [N, D].
        images: [N, C, H, W] float32.
        device: where the encoder is.
        batch_size: images per forward pass.

    Returns:
        [N, D] float32 on the CPU.
    """
    was_training = encoder.training
    encoder.eval()
    features = [encoder(batch.to(device)).float().cpu() for batch in images.split(batch_size)]
    encoder.train(was_training)
    return torch.cat(features)


def measure_geometry(features: Tensor, config: EvaluationConfig) -> Geometry:
    """Effective rank (variant `cov`) and LID statistics of a set of features.

    Args:
        features: [M, D].
        config: `lid_k`.

    Returns:
        The numbers.
    """
    lid = lid_statistics(features, k=min(config.lid_k, len(features) - 1))
    return Geometry(
        effective_rank=effective_rank(features, variant="cov"),
        lid_geometric_mean=lid.geometric_mean,
        lid_arithmetic_mean=lid.arithmetic_mean,
        lid_variance=lid.variance,
        lid_dropped=lid.dropped,
    )


def linear_probe_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy of multinomial logistic regression on standardised frozen features.

    L-BFGS with scikit-learn's default L2 penalty (C = 1). Standardising takes the place of the affine-free
    batch normalisation in front of the paper's probe; a feature that never varies is left at 0.

    Args:
        train: [N, D] features to fit on.
        train_labels: [N].
        test: [M, D] features to score on.
        test_labels: [M].

    Returns:
        The fraction of held-out rows that are classified correctly.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    # float64, because L-BFGS's stopping test sits near float32's resolution and would stop at different
    # places.
    probe.fit(train.double().numpy(), train_labels.numpy())
    return float(probe.score(test.double().numpy(), test_labels.numpy()))


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, k: int, temperature: float
) -> float:
    """Accuracy of a weighted vote among the k nearest training features by cosine.

    A neighbour at cosine s votes with weight exp(s / t) (Wu et al. 2018, "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination", section 3.4; k = 20 and t = 0.07 as in DINO).

    Args:
        train: [N, D].
        train_labels: [N].
        test: [M, D].
        test_labels: [M].
        k: neighbours that vote; at most N.
        temperature: t > 0.

    Returns:
        The fraction of held-out rows that are classified correctly.
    """

    def votes(cosine_distance: NDArray[np.float64]) -> NDArray[np.float64]:
        # exp(s/t) up to the factor exp(1/t), which every neighbour shares and which would overflow at small
        # t.
        return np.exp(-cosine_distance / temperature)

    classifier = KNeighborsClassifier(min(k, len(train)), metric="cosine", weights=votes)
    classifier.fit(train.double().numpy(), train_labels.numpy())
    return float(classifier.score(test.double().numpy(), test_labels.numpy()))


def evaluate(encoder: nn.Module, data: ImageData, config: EvaluationConfig, device: torch.device) -> Evaluation:
    """Every number by which this trainer judges a frozen encoder.

    Args:
        encoder: images to features.
        data: images and labels; probes fit on the training part, everything is measured on the held-out part.
        config: k of LID and k-NN, temperature of the k-NN vote.
        device: where the encoder is.

    Returns:
        The numbers.
    """
    train, test = encode(encoder, data.train_images, device), encode(encoder, data.test_images, device)
    sets = (train, data.train_labels, test, data.test_labels)
    return Evaluation(
        probe_accuracy=linear_probe_accuracy(*sets),
        knn_accuracy=knn_accuracy(*sets, k=config.knn_k, temperature=config.knn_temperature),
        geometry=measure_geometry(test, config),
        spectrum=covariance_spectrum(test).tolist(),
        test_images=len(test),
    )
