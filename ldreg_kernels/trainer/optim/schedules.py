"""Schedules: pure functions of `Time`. There is no scheduler object and no state to save.

`Time.step` counts finished steps, so the first step of a run sees 0 and the last one sees steps - 1: no step sees the
very end of a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # methods use schedules, so importing theirs here would go in a circle
    from ..config.optim import OptimiserConfig
    from ..methods.base import Time

Schedule = Callable[["Time"], float]


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up from 0, then half a cosine from `peak` to `floor`, per step.

    With s finished steps of S, and a warm-up of W steps:

        s <= W:  peak s / W
        s >  W:  floor + (peak - floor) (1 + cos(pi (s - W) / (S - W))) / 2

    as in LDReg's official code (util.py, adjust_learning_rate) and MAE's. So the first step has rate 0 if there is a
    warm-up and `peak` if there is none; step W has `peak`; the last step is one step short of `floor`. A run that ends
    within its warm-up never reaches `peak`.

    Attributes:
        peak: the highest rate, scaled by the batch size.
        floor: what the cosine ends at; an absolute rate.
        warmup_steps: W, not necessarily whole.
    """

    peak: float
    floor: float = 0.0
    warmup_steps: float = 0.0

    def __call__(self, time: Time) -> float:
        """The rate of the step that begins at `time`.

        Args:
            time: 0 <= step <= steps.

        Returns:
            The rate.

        Raises:
            ValueError: the step is outside of the run.
        """
        _check(time)
        if self.warmup_steps > 0 and time.step <= self.warmup_steps:
            return self.peak * time.step / self.warmup_steps
        progress = (time.step - self.warmup_steps) / (time.steps - self.warmup_steps)
        return self.floor + (self.peak - self.floor) * _half_cosine(progress)


def learning_rate(config: OptimiserConfig, batch_size: int, steps_per_epoch: int) -> LearningRate:
    """The learning rate that a configuration asks for.

    Args:
        config: rate, scaling, warm-up and floor.
        batch_size: images per step over all processes (B in lr B / 256).
        steps_per_epoch: optimiser steps per epoch.

    Returns:
        A function of `Time`.

    Raises:
        ValueError: `batch_size` or `steps_per_epoch` is not positive.
    """
    for name, value in (("batch_size", batch_size), ("steps_per_epoch", steps_per_epoch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    scale = {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}[config.lr_scaling]
    peak = config.lr * scale
    return LearningRate(peak, config.final_lr * peak, config.warmup_epochs * steps_per_epoch)


def ema_momentum(base: float) -> Schedule:
    """BYOL's momentum of the moving average: m(s) = 1 - (1 - m0) (cos(pi s / S) + 1) / 2.

    From m0 at the first step to 1 at the end (Grill et al. 2020, section 3.3).

    Args:
        base: m0 in [0, 1]; 0.996 for 1000 epochs, 0.99 for 100 and 300, 0.97 for 40.

    Returns:
        A function of `Time`.

    Raises:
        ValueError: `base` is outside of [0, 1].
    """
    if not 0 <= base <= 1:
        raise ValueError(f"base must be in [0, 1], got {base}")

    def momentum(time: Time) -> float:
        _check(time)
        return 1.0 - (1.0 - base) * _half_cosine(time.step / time.steps)

    return momentum


def warmup_switch(epochs: int) -> Schedule:
    """0 during the first epochs, 1 from then on: LDReg adds its regulariser after 10 epochs, at once.

    Args:
        epochs: how many epochs are 0.

    Returns:
        A function of `Time`.

    Raises:
        ValueError: `epochs` is negative.
    """
    if epochs < 0:
        raise ValueError(f"epochs must not be negative, got {epochs}")
    return lambda time: float(time.epoch >= epochs)


def _half_cosine(progress: float) -> float:
    """1 at 0, 0 at 1."""
    return (1.0 + math.cos(math.pi * progress)) / 2


def _check(time: Time) -> None:
    if not 0 <= time.step <= time.steps:
        raise ValueError(f"time.step must be between 0 and time.steps = {time.steps}, got {time.step}")
