"""Accuracy of a weighted vote among the nearest training features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor


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
        # exp(s/t) up to a factor that the neighbours of a row share, so that the nearest has weight 1 at any t.
        return np.exp((cosine_distance.min(axis=1, keepdims=True) - cosine_distance) / temperature)

    classifier = KNeighborsClassifier(k, metric="cosine", weights=votes)
    classifier.fit(train.double().numpy(), train_labels.numpy())
    return float(classifier.score(test.double().numpy(), test_labels.numpy()))
