"""What every backend takes and returns: the vocabulary shared by the reference, C++, Triton and CUDA.

Symbols used everywhere: x [B, D] queries, y [N, D] references (constant), k neighbours without self, d [B, k] ascending
Euclidean distances, idx [B, k]. A backend is a module with three functions over a `Problem`: `knn`, `lid` and `ldreg`.
Backward is a scaling of the rows of `grad` (ops/row_gradient.py). This file holds no arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

ESTIMATORS = ("mom", "mom_amsaleg", "mle", "hill", "hill_unbiased", "mada")
FORMS = ("l1", "l1_abs", "l2", "min", "target")
REDUCTIONS = ("mean", "sum", "none")
PRECISIONS = ("exact", "fast")

MLE_EPSILON = 1e-4  # the published constant inside the logarithm of `mle`
LID_MAX = 1e6  # at or above it the k distances are equal as far as float32 distances (1e-7 relative) can tell


class Problem(NamedTuple):
    """One neighbour problem, already validated.

    `y` is `x` itself when every row searches its own batch. `self_index` is an offset (row i of x is row
    `self_index + i` of y), a map [B] int64 with -1 for "not in y", or None. `drop_smallest` takes k + 1 neighbours and
    drops the nearest, whatever it is: the published convention, used by `compat` only.
    """

    x: Tensor  # [B, D]
    y: Tensor  # [N, D]
    k: int
    self_index: int | Tensor | None
    precision: str = "exact"
    drop_smallest: bool = False

    @property
    def symmetric(self) -> bool:
        """Whether the references are the queries, row for row."""
        return self.y is self.x and isinstance(self.self_index, int) and self.self_index == 0


class KnnResult(NamedTuple):
    """Neighbours of every row, nearest first, ties by the lower index."""

    distances: Tensor  # [B, k] float32 (float64 for float64 inputs)
    indices: Tensor  # [B, k] int64


class LidResult(NamedTuple):
    """Per-row LID, and the gradient of its logarithm.

    `degenerate` marks rows of finite distances whose ln LID does not exist (d_k = 0, all distances equal, LID = 0);
    their `grad` is 0. Rows touched by NaN or Inf are not degenerate: their LID and grad are NaN.
    """

    lid: Tensor  # [B]
    degenerate: Tensor  # [B] bool
    tracked: Tensor  # [T, B]
    grad: Tensor  # [B, D] d ln LID_i / d x_i, or [0, D] when not asked for


class LdregResult(NamedTuple):
    """The loss, what the backward pass needs, and what the logs do: None from a backend that was not asked for it."""

    value: Tensor  # [] or [B] with reduction "none"
    coeff: Tensor  # [B, 1] d value / d ln LID_i (d value_i / d ln LID_i with reduction "none")
    grad: Tensor  # [B, D] d ln LID_i / d x_i, or [0, D]
    lid: Tensor | None = None  # [B]
    degenerate: Tensor | None = None  # [B] bool
    tracked: Tensor | None = None  # [T, B]


Track = tuple[tuple[str, int], ...]


class Pairs(NamedTuple):
    """All pairs of a row x_i and a candidate y_j, already validated: logits a_ij = scale <x_i, y_j> + bias.

    Rows are unit vectors or zero, so that <x_i, y_j> is a cosine. Without bias a row's sum is
    ln sum_j exp(a_ij), with one it is sum_j ln(1 + exp(a_ij)). Two functions of a backend module serve it:

        pair_sums(pairs, need_gradient) -> (state [2, M], by_x [M, P] for by_value = 1, or None)
        pair_gradients(pairs, state, by_value [M], need_x, need_y) -> ([M, P] or None, [N, P] or None)

    Without bias, state is (top_i, total_i) with value_i = scale top_i + ln total_i: a shift of the cosines that keeps
    total_i = sum_j exp(scale (<x_i, y_j> - top_i)) in range. With one it is (slope_i, value_i), slope_i the sum of the
    logits' sigmoids. With w_ij = by_value_i * d value_i / d a_ij the gradients are by the rows, and not yet times
    `scale`: sum_j w_ij y_j and sum_i w_ij x_i; where y is x, both come added up as the first. Of constant candidates a
    row's gradient is its own affair: `pair_sums` can have it in the same pass, and backward scales rows.
    """

    x: Tensor  # [M, P] float32 or float64; or, with factors, float16 or bfloat16
    y: Tensor  # [N, P], same dtype; the same object as x where they are one
    scale: Tensor  # 0-d, float32 (float64 for float64 rows), > 0
    bias: Tensor | None  # 0-d, the dtype of scale
    own: int | None  # candidate own + i is row i itself and left out; None leaves nothing out; 0 where y is x
    views: int = 1  # 2: candidate own + (i + M / 2) modulo M is the same image, and left out too (own is given then)
    x_factor: Tensor | None = None  # [M] float32: the unit rows are x_factor_i * x_i (half precision only)
    y_factor: Tensor | None = None  # [N]

    @property
    def symmetric(self) -> bool:
        """Whether the candidates are the rows."""
        return self.y is self.x


def unit_columns(t: Tensor) -> Tensor:
    """`t`, copied only if its columns are not contiguous (or it is a view that negates, as of a conjugate's imaginary
    part); rows may be strided, or repeated with stride 0.
    """
    if t.is_neg():
        t = t.resolve_neg()
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()
