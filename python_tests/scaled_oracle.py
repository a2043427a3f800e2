"""Truth at any scale, in float64 with an exponent for every pair: distances, LID, and the gradient of ln LID.

A difference is scaled by a power of two before it is squared, so no square overflows or underflows whatever else is in
the batch. Nothing here goes through the distances of `kernels/reference.py`; the formulas of LID are its own, of
distances relative to the largest, whose derivatives test_reference.py compares with a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tolerances
import torch
from torch import Tensor

from ldreg_kernels.kernels import reference


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of B rows by ascending distance: d = mantissa 2^exponent."""

    indices: Tensor  # [B, k]
    mantissa: np.ndarray  # [B, k]
    exponent: np.ndarray  # [B, k]
    direction: np.ndarray  # [B, k, D] (x - y_j) / d_j, 0 where d_j = 0

    @property
    def distances(self) -> Tensor:
        """[B, k] float64, infinite beyond its range."""
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.ldexp(self.mantissa, self.exponent))

    @property
    def relative(self) -> Tensor:
        """d_j / d_k [B, k]; all 0 if d_k is."""
        last = np.where(self.mantissa[:, -1:] > 0, self.mantissa[:, -1:], 1.0)
        return torch.from_numpy(np.ldexp(self.mantissa / last, self.exponent - self.exponent[:, -1:]))


def pairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mantissa, exponent, scaled difference) of rows x [..., D] and y [..., D]."""
    difference = x - y
    _, exponent = np.frexp(np.abs(difference).max(-1))
    scaled = np.ldexp(difference, -exponent[..., None])
    return np.sqrt(np.square(scaled).sum(-1)), exponent, scaled


def given(x: Tensor, y: Tensor, indices: Tensor) -> Neighbours:
    """What is true of the neighbours that `indices` [B, k] names, sorted again (stably)."""
    x64, y64 = x.detach().cpu().double().numpy(), y.detach().cpu().double().numpy()
    mantissa, exponent, scaled = pairs(x64[:, None], y64[indices.numpy()])
    direction = scaled / np.where(mantissa > 0, mantissa, 1.0)[..., None]
    order = np.argsort(_comparable(mantissa, exponent), axis=1, kind="stable")
    ordered = [np.take_along_axis(v, order, 1) for v in (indices.numpy(), mantissa, exponent)]
    return Neighbours(torch.from_numpy(ordered[0]), *ordered[1:], np.take_along_axis(direction, order[..., None], 1))


def nearest(x: Tensor, y: Tensor, k: int, own: bool) -> Neighbours:
    """The k nearest rows of y for every row of x, ties by the lower index; `own`: row i of x is row i of y."""
    x64, y64 = x.detach().cpu().double().numpy(), y.detach().cpu().double().numpy()
    rows = [pairs(row, y64)[:2] for row in x64]  # a row at a time: D may be large
    mantissa, exponent = np.stack([m for m, _ in rows]), np.stack([e for _, e in rows])
    key = _comparable(mantissa, exponent)
    if own:
        np.fill_diagonal(key, np.inf)
    indices = np.argsort(key, axis=1, kind="stable")[:, :k]
    return given(x, y, torch.from_numpy(indices))


def _comparable(mantissa: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """Numbers of the same order, whose largest in each row is near 1."""
    return np.ldexp(mantissa, exponent - exponent.max(1, keepdims=True))


def lid(found: Neighbours, estimator: str) -> tuple[Tensor, Tensor, Tensor]:
    """LID [B], which rows are degenerate, and the gradient of ln LID [B, D] in float64 (infinite beyond its range)."""
    r = found.relative.requires_grad_()
    value, degenerate = reference.estimate(r, estimator)
    (w,) = torch.autograd.grad(torch.where(degenerate, torch.ones_like(value), value).log().sum(), r)
    assert w.isfinite().all()
    summed = (w.numpy()[..., None] * found.direction).sum(1)  # times 1 / d_k
    last = np.where(found.mantissa[:, -1:] > 0, found.mantissa[:, -1:], 1.0)
    with np.errstate(over="ignore"):
        gradient = np.ldexp(summed / last, -found.exponent[:, -1:])
    return value.detach(), degenerate, torch.from_numpy(gradient).masked_fill(degenerate[:, None], 0.0)


# ------------------------------------------------------------------------------------------------- judgements


def check_distances(found: Tensor, truth: Tensor, tolerance: float) -> None:
    """Every distance within `tolerance`, and half the smallest subnormal more; infinite beyond the dtype, never NaN."""
    limits = torch.finfo(found.dtype)
    beyond = truth > limits.max * (1 - tolerance)
    assert (found[beyond].double() >= limits.max * (1 - 2 * tolerance)).all(), "a distance beyond the range is small"
    error = (found.double() - truth).abs()[~beyond]
    bound = tolerance * truth[~beyond] + limits.smallest_normal * limits.eps / 2
    good = error <= bound
    worst = (error / truth[~beyond].clamp(min=limits.smallest_normal * limits.eps))[~good]
    assert good.all(), f"{(~good).sum().item()} distances off, by {worst.max().item():.2e}, tolerance {tolerance:.2e}"


def check_gradient(found: Tensor, truth: Tensor, tolerance: Tensor) -> None:
    """Every row [D] within its tolerance [B] in relative L2, so that no row hides behind a larger one.

    What the dtype cannot hold has to be infinite or at its end, of the right sign. Nothing is NaN.
    """
    assert not found.isnan().any(), f"NaN in rows {found.isnan().any(1).nonzero().flatten().tolist()}"
    end = torch.finfo(found.dtype).max * (1 - tolerance[:, None])
    beyond = truth.abs() > end
    held = (found.double() * truth.sign() >= end) | ~beyond
    assert held.all(), f"an overflowing gradient is small in rows {(~held).any(1).nonzero().flatten().tolist()}"
    size = truth.abs().amax(1, keepdim=True)  # squares of these would leave float64's range
    unit = torch.where((size > 0) & size.isfinite(), size, torch.ones_like(size))
    error = torch.where(beyond, 0.0, (found.double() - truth) / unit).norm(dim=1)
    allowed = tolerance * torch.where(size.isfinite(), truth / unit, 1e308).norm(dim=1)
    slack = torch.finfo(found.dtype).smallest_normal / unit[:, 0] * truth.shape[1] ** 0.5
    bad = ~(error <= allowed + slack)
    assert not bad.any(), (
        f"rows {bad.nonzero().flatten().tolist()}: gradient off by {(error / allowed)[bad].max().item():.2e} tolerances"
    )


def gradient_tolerance(backend: str, dtype: torch.dtype, value: Tensor) -> Tensor:
    """[B] from the rows' LIDs; 0 LIDs and NaN have gradient 0."""
    each = [tolerances.gradient(backend, dtype, v) for v in value.nan_to_num(0.0).tolist()]
    return torch.tensor(each, dtype=torch.float64)
