"""The published LDReg formulas, written here anew from their description, in plain torch: what `compat` is held
against.

Conventions: sort with self included, drop column 0 whatever it is, k = min(k, rows of data - 2), MoM over the
k - 1 nearer distances, MLE with k in the numerator and 1e-4 inside the logarithm, no special case anywhere.
"""

import torch
from torch import Tensor

ESTIMATORS = ("mom", "mle", "mom_eps")


def distances(data: Tensor, reference: Tensor, compute_mode: str = "donot_use_mm_for_euclid_dist") -> Tensor:
    """[B, N] in float64."""
    return torch.cdist(data.double().flatten(1), reference.double().flatten(1), compute_mode=compute_mode)


def lid(data: Tensor, reference: Tensor, k: int, estimator: str = "mom", **options: str) -> Tensor:
    """LID [B] in float64, with gradients to both sides; IndexError where there is no k-th distance."""
    k = min(k, data.shape[0] - 2)
    ordered = distances(data, reference, **options).sort(dim=1, stable=True).values
    kth, before = ordered[:, k], ordered[:, 1:k]
    if estimator == "mle":
        return -k / torch.log(before / kth.unsqueeze(1) + 1e-4).sum(dim=1)
    mean = before.mean(dim=1)
    return mean / (kth - mean + (1e-4 if estimator == "mom_eps" else 0))


def order(data: Tensor, reference: Tensor) -> Tensor:
    """Indices [B, N] of the references of every row, nearest first, ties by the lower index."""
    return distances(data, reference).sort(dim=1, stable=True).indices


def hill(distances_of_a_row, k):
    """The module's numpy estimator, of the sorted distances that are left."""
    return -k / torch.log(distances_of_a_row / distances_of_a_row[-1]).sum()
