"""Judging a frozen encoder: linear probe, k-NN accuracy, effective rank and LID of its features.

All of it looks at clean images through the encoder in evaluation mode. The labels of the held-out images are used for
scoring only; no setting is chosen on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from ...metrics import covariance_spectrum
from ..config import EvaluationConfig
from ..data import ImageData
from .features import Clean, Encoded, encode
from .geometry import Geometry, measure_geometry
from .knn import knn_accuracy
from .probe_exact import linear_probe_accuracy

__all__ = [
    "Clean",
    "Encoded",
    "Evaluation",
    "Geometry",
    "encode",
    "evaluate",
    "judge",
    "knn_accuracy",
    "linear_probe_accuracy",
    "measure_geometry",
]


_SMALL = 20_000_000  # numbers in a matrix of features, 80 MB


@dataclass(frozen=True)
class Evaluation:
    """What a finished encoder is judged by; accuracies in [0, 1] on held-out images; NaN if there is one class."""

    probe_accuracy: float
    knn_accuracy: float
    geometry: Geometry
    spectrum: list[float]  # covariance eigenvalues, largest first
    test_images: int  # how many images the accuracies stand on
    unreadable: tuple[str, ...] = ()  # images that could not be decoded

    def numbers(self) -> dict[str, float]:
        """Accuracies and geometry, flat, for a table or a log."""
        return {
            "probe_accuracy": self.probe_accuracy,
            "knn_accuracy": self.knn_accuracy,
            **self.geometry.numbers(),
        }


def evaluate(encoder: nn.Module, data: ImageData, clean: Clean, config: EvaluationConfig) -> Evaluation:
    """Every number by which this trainer judges a frozen encoder.

    Args:
        encoder: images to features.
        data: probes fit on the training part, everything is measured on the held-out part.
        clean: how images are read.
        config: k of LID and k-NN, temperature of the k-NN vote.

    Returns:
        The numbers.
    """
    return judge(encode(encoder, data.train, clean), encode(encoder, data.test, clean), config)


def judge(train: Encoded, test: Encoded, config: EvaluationConfig) -> Evaluation:
    """Every number by which features are judged, whatever made them.

    Args:
        train: features [N, D] that probes fit on.
        test: features [M, D] that everything is measured on.
        config: as in `evaluate`.

    Returns:
        The numbers.
    """
    sets = (train.features, train.labels, test.features, test.labels)
    # Many threads are slower where each product is small: 3,000 rows of 128 take a probe 0.5 s on one thread and 3.5 s
    # on two, far more on a busy machine. scikit-learn's BLAS would take every core, whatever torch was told.
    small = train.features.numel() < _SMALL
    with threadpool_limits(1 if small else torch.get_num_threads()):
        one_class = len(train.labels.unique()) < 2  # nothing to tell apart
        probe = math.nan if one_class else linear_probe_accuracy(*sets)
        votes = math.nan if one_class else knn_accuracy(*sets, k=config.knn_k, temperature=config.knn_temperature)
    return Evaluation(
        probe_accuracy=probe,
        knn_accuracy=votes,
        geometry=measure_geometry(test.features, config),
        spectrum=covariance_spectrum(test.features).tolist(),
        test_images=len(test.features),
        unreadable=tuple(train.unreadable + test.unreadable),
    )
