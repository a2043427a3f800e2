"""Verification passes on the fused op and fails on broken ones: the second half is what makes the first mean
something.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldreg_kernels.trainer.checks import Check, Tolerances, curve_checks, step_checks
from ldreg_kernels.trainer.comparison import compare, relative_gap
from ldreg_kernels.trainer.config import ConfigError, TrainConfig
from ldreg_kernels.trainer.regulariser import Regulariser, build_regulariser
from ldreg_kernels.trainer.verify import Report, verify

CPU = torch.device("cpu")
Bend = Callable[[Tensor], Tensor]


class Bent(torch.autograd.Function):
    """The identity, with a backward that tampers with the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bend: Bend) -> Tensor:
        ctx.bend = bend
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.bend(grad), None


def fused(config: TrainConfig) -> Regulariser:
    regulariser = build_regulariser(config.derive({"regulariser.name": "ldreg"}).regulariser, CPU)
    assert regulariser is not None
    return regulariser


def naive(config: TrainConfig) -> Regulariser:
    regulariser = build_regulariser(config.derive({"regulariser.name": "ldreg-naive"}).regulariser, CPU)
    assert regulariser is not None
    return regulariser


def broken(config: TrainConfig, bend: Bend) -> Regulariser:
    sound = fused(config)
    return lambda features: sound(Bent.apply(features, bend))


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def test_the_fused_op_passes_and_leaves_its_evidence(tiny: TrainConfig, tmp_path: Path) -> None:
    names: list[str] = []

    def watch(name: str) -> Callable[[Any], None]:
        names.append(name)
        return lambda step: None

    report = verify(tiny, tmp_path, watch=watch)
    assert report.passed, failed(report)
    assert len(report.steps) == 10
    assert len(names) == len(set(names)) == 5
    written = json.loads((tmp_path / "verification.json").read_text())
    assert written["passed"] is True
    assert len(written["curves"]["yardsticks"]) == 3
    assert (tmp_path / "verification.png").read_bytes().startswith(b"\x89PNG")


def test_a_gradient_of_the_wrong_sign_fails_in_both_questions(tiny: TrainConfig, tmp_path: Path) -> None:
    config = tiny.derive({"regulariser.weight": 1.0})
    report = verify(config, tmp_path, fused=broken(config, lambda grad: -grad))
    assert not report.passed
    assert "gradient, worst step" in failed(report)
    assert any(name.startswith("drift") for name in failed(report))
    assert json.loads((tmp_path / "verification.json").read_text())["passed"] is False


def test_the_reference_is_not_compared_with_itself(tiny: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"regulariser.backend: must not be reference"):
        verify(tiny.derive({"regulariser.backend": "reference"}))


GRADIENT, ROW = "gradient, worst step", "gradient of one row, worst step"


@pytest.mark.parametrize(
    ("bend", "found_by"),
    [
        (lambda grad: 1.0001 * grad, {GRADIENT}),
        (lambda grad: torch.where(torch.arange(len(grad))[:, None] == 5, 1.01 * grad, grad), {GRADIENT, ROW}),
        (lambda grad: grad.roll(1, 0), {GRADIENT, ROW}),
        (torch.zeros_like, {GRADIENT, ROW}),
        (lambda grad: grad * math.nan, {GRADIENT, ROW}),
    ],
    ids=["scaled by 1e-4", "one row, by 1 %", "rows shifted", "missing", "NaN"],
)
def test_a_broken_gradient_fails_on_the_features_of_one_step(tiny: TrainConfig, bend: Bend, found_by: set[str]) -> None:
    features = torch.randn(256, 64, generator=torch.Generator().manual_seed(0)).relu()
    limits = Tolerances()
    k = tiny.regulariser.k
    sound = compare(0, features, naive(tiny), fused(tiny), k=k, gap=limits.gap)
    bent = compare(0, features, naive(tiny), broken(tiny, bend), k=k, gap=limits.gap)
    assert all(check.passed for check in step_checks([sound], limits))
    assert {c.name for c in step_checks([bent], limits) if not c.passed} == found_by


def test_a_broken_value_fails(tiny: TrainConfig) -> None:
    sound = fused(tiny)

    def off(features: Tensor) -> Any:
        value, stats = sound(features)
        return value + 1e-4, stats

    features = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    step = compare(0, features, naive(tiny), off, k=tiny.regulariser.k, gap=1e-5)
    assert {c.name for c in step_checks([step], Tolerances()) if not c.passed} == {"value R, worst step"}


def test_tied_rows_are_not_judged_but_too_many_of_them_fail(tiny: TrainConfig) -> None:
    """On an integer grid nearly every k-th neighbour is tied: the comparison must say that it proved
    nothing.
    """
    grid = torch.cartesian_prod(*[torch.arange(5.0)] * 3)  # [125, 3]
    step = compare(0, grid, naive(tiny), fused(tiny), k=tiny.regulariser.k, gap=1e-5)
    assert step.unjudged > 100
    assert "share of tied rows, worst step" in {c.name for c in step_checks([step], Tolerances()) if not c.passed}


def test_relative_gap_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # from row 0: 1, 3, 7
    assert relative_gap(x, 2)[0].item() == pytest.approx(min(7 - 3, 3 - 1) / 3)
    assert relative_gap(x, 3)[0].item() == pytest.approx((7 - 3) / 7)  # there is no fourth neighbour


def curve(*losses: float) -> list[dict[str, float]]:
    return [{"loss": loss, "regulariser": loss} for loss in losses]


def test_drift_is_judged_by_the_yardsticks() -> None:
    naive_curve, yardsticks = curve(5, 4, 3), [curve(5, 4.0001, 3.001), curve(5, 4.0002, 3.0)]
    sound = curve_checks(naive_curve, curve(5, 4.0015, 3.009), yardsticks, Tolerances())
    assert all(check.passed for check in sound)
    early = curve_checks(naive_curve, curve(5, 4.003, 3.0), yardsticks, Tolerances())  # 15 times as far at step 1
    assert [check.passed for check in early] == [True, False, False]
    first = curve_checks(naive_curve, curve(5.001, 4, 3), yardsticks, Tolerances())
    assert [check.passed for check in first] == [False, False, False]


def test_nan_and_no_steps_never_pass() -> None:
    assert not Check("x", math.nan, 1.0).passed
    assert not Report(checks=[], steps=[]).passed
    poisoned = curve_checks(curve(5, 4), curve(5, math.nan), [curve(5, 4.1)], Tolerances())
    assert not poisoned[1].passed
