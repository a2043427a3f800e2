"""Parameter groups: who gets weight decay and layer-wise rates, and each group's learning rate at a step.

Tensors with at most one dimension (biases, scales and shifts of BN and LN) and whatever is named `bias` get no weight
decay, and none of LARS's adaptation: the rule of timm, so of the official MAE, and of LARS in all official
repositories. Class and mask tokens [1, 1, D] have three dimensions, and the official MAE does decay them; its positions
are fixed, so no optimiser sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from ..config.optim import OptimiserConfig
    from ..methods.base import Group, Time
    from .schedules import LearningRate


def parameter_groups(
    groups: Sequence[Group], config: OptimiserConfig, method: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Groups as torch's optimisers take them, each split into what is decayed and what is not.

    Args:
        groups: of a method.
        config: weight decay, and whether it acts on everything.
        method: whose trainable parameters must all be in some group; None skips that check.

    Returns:
        Dicts with `params`, `lr` (before scaling by the batch size; `set_learning_rate` sets it for every step),
        `weight_decay`, `lr_scale`, `constant_lr`, and for LARS `adapt`. Empty ones are left out.

    Raises:
        ValueError: a parameter is in two places, a trainable parameter of `method` is in no group, or there are no
            parameters at all.
    """
    _check(groups, method)
    split = []
    for group in groups:
        for excluded in (False, True):
            chosen = [p for name, p in group.parameters.items() if _is_excluded(name, p) == excluded]
            if not chosen:
                continue
            split.append(
                {
                    "params": chosen,
                    "lr": config.lr * group.lr_scale,
                    "weight_decay": 0.0 if excluded and not config.decay_all else config.weight_decay,
                    "lr_scale": group.lr_scale,
                    "constant_lr": group.constant_lr,
                }
                # `decay_all` is about weight decay alone: no official code adapts the rate of a bias.
                | ({"adapt": not excluded} if config.name == "lars" else {})
            )
    return split


def set_learning_rate(optimiser: torch.optim.Optimizer, rate_of: LearningRate, time: Time) -> float:
    """Give every group its rate for the step that begins at `time`.

    Args:
        optimiser: over groups of `parameter_groups`.
        rate_of: the schedule; groups of constant rate stay at its peak (SimSiam's predictor).
        time: of the step.

    Returns:
        The rate of a group without rules of its own, for the log.
    """
    rate = rate_of(time)
    for group in optimiser.param_groups:
        group["lr"] = (rate_of.peak if group["constant_lr"] else rate) * group["lr_scale"]
    return rate


def _is_excluded(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= 1 or name.split(".")[-1] == "bias"


def _check(groups: Sequence[Group], method: nn.Module | None) -> None:
    names: dict[int, str] = {}  # a parameter is known by its identity
    for group in groups:
        for name, parameter in group.parameters.items():
            if id(parameter) in names:
                raise ValueError(f"{name} is in the parameter groups twice, first as {names[id(parameter)]}")
            names[id(parameter)] = name
    if not names:
        raise ValueError("there are no parameters to train")
    if method is not None:
        forgotten = [n for n, p in method.named_parameters() if p.requires_grad and id(p) not in names]
        if forgotten:
            raise ValueError(f"in no parameter group, though trainable: {', '.join(forgotten)}")
