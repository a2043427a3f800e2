"""Verification passes on the fused op and fails on broken ones, for every method: the second half is what makes the
first mean something.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.trainer.checks import Check, Tolerances, curve_checks, step_checks
from ldreg_kernels.trainer.comparison import compare, relative_gap
from ldreg_kernels.trainer.config import ConfigError, TrainConfig
from ldreg_kernels.trainer.engine import Recorder, prepare, step_log, train_one_epoch
from ldreg_kernels.trainer.methods import Output, Time
from ldreg_kernels.trainer.regularisers import Regulariser, Term, build_regulariser
from ldreg_kernels.trainer.step_log import Observer, Step
from ldreg_kernels.trainer.verify import Cost, Report, StepComparer, verify

CPU = torch.device("cpu")
METHODS = ("simclr", "byol", "mae")
TinyOf = Callable[..., TrainConfig]
Bend = Callable[[Tensor], Tensor]

VALUE, GRADIENT, ROW = "value R, worst step", "gradient, worst step", "gradient of one row, worst step"
TIED = "share of tied rows, worst step"


def small(tiny_of: TinyOf, method: str, **changes: Any) -> TrainConfig:
    """One epoch of five steps, judged on 300 images."""
    few = {"data__train_images": 320, "data__test_images": 300, "batch_size": 64, "epochs": 1}
    return tiny_of(method, **few, **changes)


class Bent(torch.autograd.Function):
    """The identity, with a backward that tampers with the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bend: Bend) -> Tensor:
        ctx.bend = bend
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.bend(grad), None


class Broken:
    """A regulariser that stands in for the fused one.

    Args:
        config: of the run.
        compute: from the sound regulariser and an output to a term.
    """

    ratio = None

    def __init__(self, config: TrainConfig, compute: Callable[[Regulariser, Output], Term]) -> None:
        self._sound = build_regulariser(config.with_regulariser("ldreg").regularisers[0], CPU)
        self._compute = compute

    def __call__(self, output: Output, group: Any = None) -> Term:
        return self._compute(self._sound, output)

    def weight(self, time: Time) -> float:
        return self._sound.weight(time)


def bent(config: TrainConfig, bend: Bend) -> Broken:
    """The fused op with another gradient."""
    return Broken(config, lambda sound, o: sound(o._replace(features=Bent.apply(o.features, bend))))


def searched(config: TrainConfig, self_index: Callable[[Output], Any]) -> Broken:
    """The fused op with its references given, and another `self_index`."""

    def compute(sound: Regulariser, output: Output) -> Term:
        y = output.features.detach()
        if output.extra_references is not None:
            y = torch.cat([y, output.extra_references])
        k = config.regularisers[0].k
        return Term(ldk.ldreg_loss(output.features, y, k=k, self_index=self_index(output), backend="cpu"))

    return Broken(config, compute)


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


# ---------------------------------------------------------------- whole verifications


class Silent(Observer):
    """Watches and says nothing."""


@pytest.mark.parametrize("method", METHODS)
def test_the_fused_op_passes_and_leaves_its_evidence(method: str, tiny_of: TinyOf, tmp_path: Path) -> None:
    names: list[str] = []

    def watch(name: str) -> Observer:
        names.append(name)
        return Silent()

    report = verify(small(tiny_of, method), tmp_path, watch=watch)
    assert report.passed, failed(report)
    assert len(report.steps) == 5
    assert len(names) == len(set(names)) == 5
    assert report.tied_rows[1] == 5 * (64 if method == "mae" else 128)
    written = json.loads((tmp_path / "verification.json").read_text())
    assert written["passed"] is True
    assert written["config"]["method"]["name"] == method
    # Trainings of their own: of weights one unit apart the loss alone may round to the same numbers for five steps.
    yardsticks = [json.dumps(curve) for curve in written["curves"]["yardsticks"]]
    assert len(yardsticks) == len(set(yardsticks)) == 3
    assert (tmp_path / "verification.png").read_bytes().startswith(b"\x89PNG")
    assert report.cost is not None
    assert written["cost_milliseconds"] == asdict(report.cost)
    assert all(0 < share < 1 for share in report.cost.shares)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_of_the_wrong_sign_fails_in_both_questions(method: str, tiny_of: TinyOf, tmp_path: Path) -> None:
    config = small(tiny_of, method, regularisers__0__weight=1.0, optimiser__warmup_epochs=0)
    report = verify(config, tmp_path, fused=bent(config, lambda grad: -grad))
    assert not report.passed
    assert GRADIENT in failed(report)
    assert any(name.startswith("drift") for name in failed(report))
    assert json.loads((tmp_path / "verification.json").read_text())["passed"] is False


def test_shares_by_hand() -> None:
    naive, fused = Cost(step=75.0, naive=40.0, fused=15.0).shares
    assert naive == pytest.approx(0.4)
    assert fused == pytest.approx(15 / 75)


def test_what_cannot_be_compared_is_refused(tiny_of: TinyOf) -> None:
    config = small(tiny_of, "simclr")
    for never_added in ({"regularisers.0.weight": 0.0}, {"regularisers.0.warmup_epochs": 2, "epochs": 5}):
        with pytest.raises(ConfigError, match=r"regularisers.0: must be added in the first epochs"):
            verify(config.derive(never_added))
    with pytest.raises(ConfigError, match=r"regularisers.0.backend: must not be reference"):
        verify(config.derive({"regularisers.0.backend": "reference"}))
    with pytest.raises(ConfigError, match=r"regularisers: exactly one can be verified, got 0"):
        verify(config.with_regulariser("none"))
    with pytest.raises(ConfigError, match=r"regularisers: exactly one can be verified, got 2"):
        verify(config.derive({"regularisers": [{"k": 8}, {"k": 16}]}))


# ---------------------------------------------------------------- the outputs of three steps


class Outputs(Observer):
    """Keeps the steps."""

    def __init__(self) -> None:
        self.seen: list[Step] = []

    def step(self, step: Step) -> None:
        self.seen.append(step)


Trained = tuple[TrainConfig, list[Step]]


@pytest.fixture(params=METHODS)
def trained(request: pytest.FixtureRequest, tiny_of: TinyOf) -> Trained:
    """Each method's configuration, and its steps 0, 1 and 4 of an epoch; trained once for all tests."""
    kept: dict[str, Trained] = trained_methods
    method: str = request.param
    if method not in kept:
        config = small(tiny_of, method)
        run, outputs = prepare(config), Outputs()
        train_one_epoch(run, 0, step_log(run, [Recorder(), outputs]))
        kept[method] = config, [outputs.seen[i] for i in (0, 1, 4)]
    return kept[method]


trained_methods: dict[str, Trained] = {}


def found(trained: Trained, fused: Regulariser | None) -> set[str]:
    """The checks that fail."""
    config, steps = trained
    limits = Tolerances()
    comparer = StepComparer(config.with_regulariser("ldreg-naive"), config.with_regulariser("ldreg"), fused, limits)
    for step in steps:
        comparer.step(step)
    assert [s.step for s in comparer.steps] == [0, 1, 4]
    return {check.name for check in step_checks(comparer.steps, limits) if not check.passed}


def test_sound_steps_pass(trained: Trained) -> None:
    assert found(trained, None) == set()


@pytest.mark.parametrize(
    ("bend", "found_by"),
    [
        (lambda grad: 1.01 * grad, {GRADIENT, ROW}),
        (lambda grad: -grad, {GRADIENT, ROW}),
        (lambda grad: 1.0001 * grad, {GRADIENT}),
        (lambda grad: torch.where(torch.arange(len(grad))[:, None] == 5, 1.01 * grad, grad), {GRADIENT, ROW}),
        (lambda grad: grad.roll(1, 0), {GRADIENT, ROW}),
        (torch.zeros_like, {GRADIENT, ROW}),
        (lambda grad: grad * math.nan, {GRADIENT, ROW}),
    ],
    ids=["1 % too large", "wrong sign", "1e-4 too large", "one row, by 1 %", "rows shifted", "missing", "NaN"],
)
def test_a_broken_gradient_is_caught(trained: Trained, bend: Bend, found_by: set[str]) -> None:
    assert found(trained, bent(trained[0], bend)) == found_by


@pytest.mark.parametrize("off", [1e-4, -1e-4])
def test_a_broken_value_is_caught(trained: Trained, off: float) -> None:
    def compute(sound: Regulariser, output: Output) -> Term:
        value, stats = sound(output)
        # 1e-4 of what the check divides by
        return Term(value + off * max(1.0, abs(value.item())), stats)

    assert found(trained, Broken(trained[0], compute)) == {VALUE}


def test_a_wrong_self_index_is_caught(trained: Trained) -> None:
    config, _ = trained
    assert found(trained, searched(config, lambda output: 0)) == set()  # given as it should be

    def next_row(output: Output) -> Tensor:
        rows = len(output.features)
        return (torch.arange(rows) + 1) % rows

    assert {VALUE, GRADIENT} <= found(trained, searched(config, next_row))
    assert {VALUE, GRADIENT} <= found(trained, searched(config, lambda output: None))
    if config.method.name == "byol":  # with extra references an offset by one is in range
        assert {VALUE, GRADIENT} <= found(trained, searched(config, lambda output: 1))


@pytest.mark.parametrize("trained", ["byol"], indirect=True)
def test_extra_references_dropped_are_caught(trained: Trained) -> None:
    dropped = Broken(trained[0], lambda sound, output: sound(output._replace(extra_references=None)))
    assert {VALUE, GRADIENT} <= found(trained, dropped)


@pytest.mark.parametrize("trained", ["byol"], indirect=True)
def test_references_that_lie_twice_are_judged(trained: Trained) -> None:
    """The momentum encoder begins as a copy and the first step has rate 0: every row of steps 0 and 1 has its double,
    at equal distances, and which of the two is the k-th neighbour makes no difference.
    """
    config, steps = trained
    k = config.regularisers[0].k
    for step in steps[:2]:
        assert step.output.extra_references is not None
        assert torch.equal(step.output.features, step.output.extra_references)
        gap = relative_gap(step.output.features, step.output.extra_references, k)
        torch.testing.assert_close(gap, relative_gap_of_pairs(step.output.features, k))


def relative_gap_of_pairs(x: Tensor, k: int) -> Tensor:
    """By hand: distances 0 (the copy), then each of the other rows' twice; the k-th is number k // 2 of these."""
    distances = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    single = distances.sort(1).values  # self first
    place = k // 2
    around = torch.stack([single[:, place] - single[:, place - 1], single[:, place + 1] - single[:, place]])
    return around.amin(0) / single[:, place]


# ---------------------------------------------------------------- rows that cannot be judged


def test_tied_rows_are_not_judged_but_too_many_of_them_fail(tiny: TrainConfig) -> None:
    """On an integer grid nearly every k-th neighbour is tied: the comparison must say that it proved nothing."""
    grid = torch.cartesian_prod(*[torch.arange(5.0)] * 3)  # [125, 3]
    naive, fused = (
        build_regulariser(tiny.with_regulariser(name).regularisers[0], CPU) for name in ("ldreg-naive", "ldreg")
    )
    step = compare(0, Output(torch.tensor(0.0), grid), naive, fused, k=tiny.regularisers[0].k, gap=1e-5)
    assert step.unjudged > 100
    assert TIED in {c.name for c in step_checks([step], Tolerances()) if not c.passed}


def test_rows_tied_with_extra_references_are_not_judged(tiny: TrainConfig) -> None:
    config = tiny.derive({"regularisers.0.k": 2})
    naive, fused = (
        build_regulariser(config.with_regulariser(name).regularisers[0], CPU) for name in ("ldreg-naive", "ldreg")
    )
    output = Output(torch.tensor(0.0), torch.tensor([[0.0], [1.0], [3.0], [7.0]]))  # from row 0: 1, 3, 7
    tied = output._replace(extra_references=torch.tensor([[-3.0]]))
    assert compare(0, output, naive, fused, k=2, gap=1e-5).unjudged == 0
    assert compare(0, tied, naive, fused, k=2, gap=1e-5).unjudged == 1


def test_relative_gap_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # from row 0: 1, 3, 7
    assert relative_gap(x, None, 2)[0].item() == pytest.approx(min(7 - 3, 3 - 1) / 3)
    assert relative_gap(x, None, 3)[0].item() == pytest.approx((7 - 3) / 7)  # there is no fourth neighbour
    assert relative_gap(x, torch.tensor([[3.5]]), 2)[0].item() == pytest.approx((3.5 - 3) / 3)


@pytest.mark.parametrize(
    ("extra", "gap"),
    [
        ([[3.0]], (3 - 1) / 3),  # 1, 3, 3, 7: the second 3 is as good as the first, the next others are 1 and 7
        ([[-3.0]], 0.0),  # as far, but elsewhere
        ([[1.0]], (3 - 1) / 1),  # 1, 1, 3, 7: the k-th is the second 1
        ([[3.0], [3.0]], 0.0),  # 1, 3, 3, 3, 7: more than are looked at
    ],
)
def test_equal_neighbours_are_no_tie(extra: list[list[float]], gap: float) -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert relative_gap(x, torch.tensor(extra), 2)[0].item() == pytest.approx(gap)


# ---------------------------------------------------------------- curves


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
