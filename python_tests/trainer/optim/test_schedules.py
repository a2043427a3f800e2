"""Schedules at their ends, in their middle, and outside of the run."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from ldreg_kernels.trainer.config.optim import OptimiserConfig
from ldreg_kernels.trainer.methods.base import Time
from ldreg_kernels.trainer.optim import LearningRate, ema_momentum, learning_rate, warmup_switch


def at(step: int, steps: int = 100, epoch: int = 0) -> Time:
    return Time(step, steps, epoch)


def test_warm_up_is_linear_from_0_and_the_cosine_ends_one_step_after_the_last() -> None:
    rate = LearningRate(peak=2.0, floor=0.2, warmup_steps=20)
    assert rate(at(0)) == 0.0
    assert rate(at(5)) == 0.5
    assert rate(at(10)) == 1.0
    assert rate(at(20)) == 2.0
    assert rate(at(60)) == pytest.approx(1.1, rel=1e-15)  # the middle of the cosine
    assert rate(at(40)) == pytest.approx(0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2, rel=1e-15)  # a quarter
    assert rate(at(99)) == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi * 79 / 80)) / 2, rel=1e-15)
    assert rate(at(100)) == pytest.approx(0.2, rel=1e-15)


def test_rises_through_the_warm_up_and_falls_after_it() -> None:
    rate = LearningRate(peak=1.0, floor=0.01, warmup_steps=12.5)  # 2.5 epochs of five steps
    values = [rate(at(step)) for step in range(101)]
    assert all(a < b for a, b in pairwise(values[:13]))
    assert all(a > b for a, b in pairwise(values[13:]))
    assert 0.99 < max(values) <= 1.0
    assert min(values[13:]) == pytest.approx(0.01, rel=1e-15)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert LearningRate(peak=3.0)(at(0)) == 3.0


def test_a_run_within_its_warm_up_never_divides_by_zero() -> None:
    assert [LearningRate(1.0, 0.0, 4)(at(step, 4)) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert LearningRate(1.0, 0.0, 8)(at(3, 4)) == 3 / 8


@pytest.mark.parametrize(("scaling", "peak"), [("none", 0.075), ("linear", 0.075 * 4096 / 256), ("sqrt", 0.075 * 64)])
def test_scaling_with_the_batch(scaling: str, peak: float) -> None:
    config = OptimiserConfig(name="lars", lr=0.075, lr_scaling=scaling, warmup_epochs=1.5, final_lr=0.001)
    assert learning_rate(config, 4096, 10) == LearningRate(peak, 0.001 * peak, 15.0)


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        learning_rate(OptimiserConfig(), 0, 10)
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 1, got 0"):
        learning_rate(OptimiserConfig(), 8, 0)


def test_ema_momentum_goes_from_its_base_to_1() -> None:
    momentum = ema_momentum(0.996)
    assert momentum(at(0)) == pytest.approx(0.996, rel=1e-15)
    assert momentum(at(50)) == pytest.approx(0.998, rel=1e-15)
    assert momentum(at(25)) == pytest.approx(1 - 0.004 * (math.sqrt(0.5) + 1) / 2, rel=1e-15)
    assert momentum(at(100)) == 1.0
    values = [momentum(at(step)) for step in range(101)]
    assert values == sorted(values)
    assert {ema_momentum(1.0)(at(step)) for step in range(101)} == {1.0}


@pytest.mark.parametrize("base", [-0.1, 1.1, math.nan])
def test_an_impossible_momentum_is_named(base: float) -> None:
    with pytest.raises(ValueError, match=r"base must be in \[0, 1\]"):
        ema_momentum(base)


def test_the_switch_turns_on_with_an_epoch() -> None:
    weight = warmup_switch(2)
    assert [weight(at(5, epoch=epoch)) for epoch in range(4)] == [0.0, 0.0, 1.0, 1.0]
    assert warmup_switch(0)(at(0)) == 1.0
    with pytest.raises(ValueError, match="epochs must not be negative, got -1"):
        warmup_switch(-1)


@pytest.mark.parametrize("schedule", [LearningRate(1.0), ema_momentum(0.9)])
@pytest.mark.parametrize("step", [-1, 101])
def test_steps_outside_of_the_run_are_refused(schedule, step: int) -> None:
    with pytest.raises(ValueError, match=f"time.step must be between 0 and time.steps = 100, got {step}"):
        schedule(at(step))
