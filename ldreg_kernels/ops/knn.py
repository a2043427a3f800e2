"""`knn`: the k nearest references of every query, exact, with no gradient.

d_ij = ||x_i - y_j||_2, ascending in j, ties by the lower index. The launch is the registered op `ldreg::knn`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import dispatch
from ..kernels.contract import Problem
from . import own_rows, validate
from .registry import register


class KNN(NamedTuple):
    """Result of `knn`."""

    distances: Tensor  # [B, k] float32 (float64 for float64 inputs), ascending
    indices: Tensor  # [B, k] int64


def make_problem(
    x: Tensor,
    y: Tensor | None,
    k: int,
    self_map: Tensor | None,
    self_offset: int | None,
    precision: str,
    drop_smallest: bool = False,
) -> Problem:
    """The `Problem` that an op's flat arguments describe; checks what needs the data, the map's entries."""
    if y is None or own_rows.same_storage(x, y):  # a batch among its own rows costs half
        y = x
        # All of them are at distance 0 from themselves: dropping the smallest is leaving out the own index.
        if drop_smallest:
            self_offset, drop_smallest = 0, False
    if self_map is not None:
        validate.self_map(self_map, y.shape[0])
    own = self_offset if self_map is None else self_map
    return Problem(x, y, k, own, precision, drop_smallest)


def _knn(
    x: Tensor, y: Tensor | None, k: int, self_map: Tensor | None, self_offset: int | None, backend: str, precision: str
) -> tuple[Tensor, Tensor]:
    if x.shape[0] == 0:
        return _knn_fake(x, y, k, self_map, self_offset, backend, precision)
    problem = make_problem(x, y, k, self_map, self_offset, precision)
    result = dispatch.resolve(backend, x.device, k=problem.k, columns=x.shape[1]).knn(problem)
    return result.distances, result.indices


def _knn_fake(
    x: Tensor, y: Tensor | None, k: int, self_map: Tensor | None, self_offset: int | None, backend: str, precision: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], k, dtype=result_dtype(x)), x.new_empty(x.shape[0], k, dtype=torch.int64)


_knn_op = register(
    "knn(Tensor x, Tensor? y, int k, Tensor? self_map, int? self_offset, str backend, str precision) "
    "-> (Tensor, Tensor)",
    _knn,
    _knn_fake,
)


def result_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 features, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def knn(
    x: Tensor,
    y: Tensor | None = None,
    *,
    k: int,
    self_index: int | Tensor | str | None = None,
    backend: str = "auto",
    precision: str = "exact",
) -> KNN:
    """The k nearest rows of y for every row of x, in Euclidean distance.

    Args:
        x: queries [B, D]; float32, float64, bfloat16 or float16, any strides.
        y: references [N, D], dtype and device of x (under autocast the wider of the two dtypes is taken); None searches
            x itself, each row's own index left out.
        k: neighbours per row, 1 <= k <= N (N - 1 where self is left out).
        self_index: where row i of x sits in y: an offset (row i is row `self_index + i`), an int64 tensor [B]
            (-1: not in y), None (nothing is left out), or "auto": found by memory (x is a slice of y) or else by equal
            rows, which sorts the rows of both and waits for the device; no "auto" in one graph of torch.compile.
        backend: auto, reference, cpu, triton or cuda.
        precision: "exact" (the neighbours of float64 arithmetic, except where distances tie within 1e-6 relative) or
            "fast" (low-precision selection without the certificate; distances are still evaluated exactly).

    Returns:
        KNN(distances [B, k] ascending, indices [B, k] int64). Equal distances: lower index first. A row with NaN or
        Inf is at distance NaN from everything and is taken last.

    Raises:
        ValueError, TypeError: a bad argument, by name.
        RuntimeError: a backend asked for by name that is unavailable, with the reason.
    """
    x, y = validate.features(x, y)
    offset, own = validate.self_index(self_index, x, y)
    k = validate.neighbours("k", k, 1, x, y, offset is not None or own is not None)
    validate.modes("mom", "l1", "mean", backend, precision)
    if y is not None and y.requires_grad:
        y = y.detach()
    return KNN(*_knn_op(x.detach() if x.requires_grad else x, y, k, own, offset, backend, precision))
