"""The linear probe as a convex problem with one answer: two evaluations of the same features agree."""

from __future__ import annotations

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor


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
