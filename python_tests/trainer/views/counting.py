"""Is a count of independent draws what its probability says? Bounds at five standard deviations, with seeds fixed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def assert_share(count: int, total: int, probability: float) -> None:
    """`count` of `total` draws came out; exact where the probability is 0 or 1."""
    bound = 5 * (total * probability * (1 - probability)) ** 0.5
    assert abs(count - total * probability) <= bound, f"{count} of {total}, expected {probability}"


def assert_uniform(values: ArrayLike, low: float, high: float, slack: float = 1e-6) -> None:
    """All values lie in [low, high], and their distribution is uniform there (Kolmogorov-Smirnov).

    2.5 / sqrt(n) is exceeded with probability 7e-6; `slack` is what rounding adds to a value.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    assert ordered[0] >= low - slack
    assert ordered[-1] <= high + slack
    n = len(ordered)
    expected = np.clip((ordered - low) / (high - low), 0, 1)
    distance = max(
        np.abs(expected - np.arange(n) / n).max(),
        np.abs(expected - np.arange(1, n + 1) / n).max(),
    )
    assert distance <= 2.5 / n**0.5, f"distance {distance:.4f} from uniform on [{low}, {high}] with {n} draws"
