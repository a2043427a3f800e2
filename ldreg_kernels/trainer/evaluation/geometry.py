"""Effective rank and LID of a set of features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...metrics import effective_rank, lid_statistics
from ..config import EvaluationConfig


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


def measure_geometry(features: Tensor, config: EvaluationConfig) -> Geometry:
    """Effective rank (variant `cov`) and LID statistics of a set of features.

    Args:
        features: [M, D].
        config: `lid_k`.

    Returns:
        The numbers.
    """
    lid = lid_statistics(features, k=config.lid_k)
    return Geometry(
        effective_rank=effective_rank(features, variant="cov"),
        lid_geometric_mean=lid.geometric_mean,
        lid_arithmetic_mean=lid.arithmetic_mean,
        lid_variance=lid.variance,
        lid_dropped=lid.dropped,
    )
