"""Metrics: numbers that describe a set of representations. Nothing here is differentiable."""

from .effective_rank import effective_rank
from .lid_statistics import LIDStatistics, lid_statistics, summarise_lid
from .spectrum import covariance_spectrum, singular_values

__all__ = [
    "LIDStatistics",
    "covariance_spectrum",
    "effective_rank",
    "lid_statistics",
    "singular_values",
    "summarise_lid",
]
