"""Optimisers, parameter groups and schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from .groups import parameter_groups, set_learning_rate
from .larc import LARC
from .lars import LARS
from .schedules import LearningRate, Schedule, ema_momentum, learning_rate, warmup_switch

if TYPE_CHECKING:
    from ..config.optim import OptimiserConfig
    from ..methods.base import Group

__all__ = [
    "LARC",
    "LARS",
    "LearningRate",
    "Schedule",
    "build_optimiser",
    "ema_momentum",
    "learning_rate",
    "parameter_groups",
    "set_learning_rate",
    "warmup_switch",
]


def build_optimiser(
    config: OptimiserConfig, groups: Sequence[Group], method: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimiser a configuration asks for, over a method's groups.

    Its rates are those before scaling by the batch size and without a schedule: call `set_learning_rate` before every
    step.

    Args:
        config: name and settings.
        groups: `method.parameter_groups()`.
        method: as in `parameter_groups`: checks that no trainable parameter was forgotten.

    Returns:
        The optimiser.

    Raises:
        ValueError: as `parameter_groups`.
    """
    split = parameter_groups(groups, config, method)
    if config.name == "adamw":
        return torch.optim.AdamW(split, lr=config.lr, betas=config.betas)
    if config.name == "sgd":
        return torch.optim.SGD(split, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    kind = LARS if config.name == "lars" else LARC
    return kind(split, lr=config.lr, momentum=config.momentum, trust_coefficient=config.trust_coefficient)
