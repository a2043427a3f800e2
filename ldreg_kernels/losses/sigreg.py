"""SIGReg, LeJEPA's regulariser: the projections of the rows onto random directions shall be standard normal.

Along a unit direction a the N projections p_n = a . x_n have the empirical characteristic function
phi(t) = (1/N) sum_n exp(i t p_n), and the Epps-Pulley statistic is its distance to that of N(0, 1), g(t) = exp(-t^2/2):

    T(a) = N integral_{-limit}^{limit} |phi(t) - g(t)|^2 exp(-t^2/2) dt,      L = mean over directions a of T(a)

What this file does not do: keep directions from one call to the next, or gather rows of other processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import validate
from ..ops.row_gradient import transformed
from .checks import check_positive_number, check_rows
from .cosine import unit_rows


def sigreg_loss(
    x: Tensor,
    *,
    directions: int = 256,
    knots: int = 17,
    limit: float = 5.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Distance of a batch to an isotropic standard normal, seen along random directions.

    L = mean_a N integral |phi_a(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt over [-limit, limit], by the trapezoidal rule
    (Balestriero & LeCun 2025, "LeJEPA", arXiv 2511.08544, section 4.3 and Algorithm 1; Epps & Pulley 1983), with new
    directions, uniform on the sphere, at every call. The values are those of the paper's listing. The released code,
    also rbalestr-lab/lejepa's minimal example, integrates over [-3, 3] with twice as many knots, 17 on [0, 3]: that is
    `knots=33, limit=3.0`, seeds the directions with the number of the step, the same on every rank, and averages the
    characteristic function over ranks.

    Rows are taken as they are, not normalised and not centred: their scale is what is regularised. Rows of zeros are as
    good as any. Only the knots t >= 0 are visited, phi(-t) being the conjugate, one at a time and once more in
    backward: memory is that of some [N, directions], whatever the number of knots.

    At full collapse (all rows equal to some c) all rows have the same gradient, which moves c towards 0 and is 0 there;
    the part that pulls rows apart is 0, and near collapse proportional to their distances (this is what VISReg, arXiv
    2606.02572, adds a variance term for).

    A rule whose knots are h apart has the period 2 pi / h in every projection: 10.1 with the paper's values, 33.5 with
    the released ones. Rows beyond half of it are attracted by the next multiple instead of by 0; more knots push that
    out.

    Under DDP, which averages gradients, it is the mean of the ranks' statistics, each with its own number of rows N and
    its own directions, not the statistic of the joint batch. For that one, every rank takes
    `sigreg_loss(gather_rows(x).rows, generator=g)` (ops/gather.py) with generators of equal seeds.

    Args:
        x: rows [N, D], N >= 1, any floating dtype.
        directions: how many are drawn.
        knots: of the trapezoidal rule on [-limit, limit]; odd, at least 3.
        limit: > 0, where the integral ends, in units of 1/x.
        generator: on the device of x; None takes torch's own.

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64. NaN if a row is
        not finite.

    Raises:
        TypeError: `x` is not a floating point tensor, `directions` or `knots` is no int, `limit` no number, or
            `generator` no torch.Generator.
        ValueError: `x` is not [N, D] with N >= 1, `directions` < 1, `knots` is even or below 3, `limit` is not positive
            and finite, or `generator` is on another device.
    """
    check_rows("x", x)
    if x.shape[0] < 1:
        raise ValueError("x must have at least 1 row, got 0")
    _check(directions, knots, limit)
    _check_generator(generator, x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        normals = x.new_empty(directions, x.shape[1], dtype=dtype).normal_(generator=generator)
        projections = x.to(dtype) @ unit_rows(normals).T  # [N, directions]
        step = 2 * limit / (knots - 1)
        half = torch.arange((knots + 1) // 2, device=x.device, dtype=dtype) * step  # [(knots + 1) / 2] from 0 to limit
        normal = torch.exp(-half.square() / 2)  # both the target and the window
        integral = torch.zeros((), device=x.device, dtype=dtype)
        error = _squared_error if transformed() else _SquaredError.apply
        for i in range(half.shape[0]):
            # The ends of [-limit, limit] count half, and all knots but 0 twice.
            weight = step if i in (0, half.shape[0] - 1) else 2 * step
            integral = integral + weight * normal[i] * error(projections, half[i], normal[i])
        return x.shape[0] * integral


class SIGRegLoss(nn.Module):
    """`sigreg_loss` with its settings kept (LeJEPA, section 4.3); directions come from torch's own generator.

    Args:
        directions: how many are drawn at every call.
        knots: of the trapezoidal rule on [-limit, limit]; odd, at least 3.
        limit: > 0, where the integral ends.

    Raises:
        TypeError, ValueError: a bad setting, by name.
    """

    def __init__(self, directions: int = 256, *, knots: int = 17, limit: float = 5.0) -> None:
        super().__init__()
        _check(directions, knots, limit)
        self.directions = directions
        self.knots = knots
        self.limit = limit

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Loss of a batch of rows; see `sigreg_loss`.

        Args:
            x: rows [N, D].
            generator: of the directions, on the device of x; None takes torch's own.

        Returns:
            A 0-d tensor.
        """
        return sigreg_loss(x, directions=self.directions, knots=self.knots, limit=self.limit, generator=generator)

    def extra_repr(self) -> str:
        """The settings, for `repr`."""
        return f"directions={self.directions}, knots={self.knots}, limit={self.limit}"


def _squared_error(projections: Tensor, t: Tensor, normal: Tensor) -> Tensor:
    angles = t * projections
    return ((angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()).mean()


class _SquaredError(torch.autograd.Function):
    """e = |phi(t) - g(t)|^2, mean over M directions, of projections [N, M]; keeps them alone, which all knots share.

    With phi = C + iS, de/dp = (2 t / (N M)) (S cos(t p) - (C - g) sin(t p)).
    """

    @staticmethod
    def forward(projections: Tensor, t: Tensor, normal: Tensor) -> Tensor:
        return _squared_error(projections, t, normal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        projections, t, normal = ctx.saved_tensors
        angles = t * projections
        cosines, sines = angles.cos(), angles.sin()
        real, imaginary = cosines.mean(dim=0) - normal, sines.mean(dim=0)
        return gradient * (2 / projections.numel()) * t * (imaginary * cosines - real * sines), None, None


def _check(directions: int, knots: int, limit: float) -> None:
    validate.at_least("directions", directions, 1)
    if validate.at_least("knots", knots, 3) % 2 == 0:
        raise ValueError(f"knots must be odd, so that 0 is one of them, got {knots}")
    check_positive_number("limit", limit)


def _check_generator(generator: torch.Generator | None, x: Tensor) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if generator.device != x.device:
        raise ValueError(f"generator must be on the device of x, {x.device}, got {generator.device}")
