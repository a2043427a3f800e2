"""The regularisers as the engine sees them, and the one place where they are added to the loss.

    total loss = ssl loss + sum_r beta_r R_r,     R = -mean ln LID (ldreg),  R = +mean ln LID (minlid)

Three ways to compute the LID term: `ldreg` (fused), `ldreg-naive` (the reference: cdist, sort, autograd) and `minlid`
(fused, to show what a falling LID does). The choice is a backend name handed to the op; no code here depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..kernels.dispatch import backends
from ..losses.ldreg import LDRegLoss
from ..ops.ldreg import LDRegStats
from .config import RegulariserConfig
from .methods.base import Output, Time
from .optim.schedules import warmup_switch


class NoBackendError(RuntimeError):
    """No backend on this machine can compute what the configuration asks for; the message says why."""


class Term(NamedTuple):
    """What a regulariser gives for one step."""

    value: Tensor  # [] R, without its weight
    stats: LDRegStats | None = None


class Regulariser(Protocol):
    """A term of the loss: a function of a method's output, and a weight that may depend on the time."""

    @property
    def ratio(self) -> float | None:
        """None, or the share of the gradient at the features that sets the weight."""

    def __call__(self, output: Output, group: Any = None) -> Term:
        """R of an output; `group` is the process group whose features are references too."""

    def weight(self, time: Time) -> float:
        """beta at a step; 0: computed and logged, but not added."""


@dataclass(frozen=True)
class LIDRegulariser:
    """R of the encoder's features, among themselves and a method's extra references.

    Attributes:
        loss: the op as a module; its weight stays 1.
        beta: the weight; unused where `ratio` is given.
        ratio: share of the gradient, or None.
        warmup_epochs: epochs at weight 0.
    """

    loss: LDRegLoss
    beta: float
    ratio: float | None = None
    warmup_epochs: int = 0

    def __call__(self, output: Output, group: Any = None) -> Term:
        """R and the batch's LIDs of an output's features [Q, D]."""
        if group is not None:
            raise NotImplementedError("features of other processes are not gathered yet: group must be None")
        return Term(self.loss(output.features, output.extra_references), self.loss.stats)

    def weight(self, time: Time) -> float:
        """beta after the warm-up, at once; 1 stands for "on" where a ratio sets it."""
        return warmup_switch(self.warmup_epochs)(time) * (1.0 if self.ratio is not None else self.beta)


def build_regulariser(config: RegulariserConfig, device: torch.device) -> LIDRegulariser:
    """The regulariser a configuration asks for.

    Args:
        config: name, k, form, estimator, backend, weight.
        device: where the features will be.

    Returns:
        The regulariser.

    Raises:
        NoBackendError: the configured backend, or for `auto` every fused one, is unavailable on this device.
    """
    if config.name == "ldreg-naive":
        backend = "reference"
    else:
        backend = fused_backend(device) if config.backend == "auto" else _available(config.backend)
    loss = LDRegLoss(
        config.k,
        "min" if config.name == "minlid" else config.form,
        estimator=config.estimator,
        target=config.target,
        backend=backend,
        clamp=False,  # k is the configuration's, or nothing is trained
        gather=False,
    )
    beta = 0.0 if isinstance(config.weight, str) else config.weight
    return LIDRegulariser(loss, beta, config.ratio, config.warmup_epochs)


def fused_backend(device: torch.device) -> str:
    """The name of the fastest fused backend for a device.

    `backend="auto"` of the op may take the reference where nothing else runs. Here that would be a silent
    lie: a run called `ldreg` would be the naive one, and a comparison of the two would compare the reference
    with itself.

    Args:
        device: where the features will be.

    Returns:
        "cuda" or "triton" for a GPU, "cpu" for a CPU.

    Raises:
        NoBackendError: none of them runs here; the message has each one's reason.
    """
    wanted = ("cpu",) if device.type == "cpu" else ("cuda", "triton")
    reasons = {name: backends().get(name, "unknown backend") for name in wanted}
    for name, reason in reasons.items():
        if reason is None:
            return name
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise NoBackendError(f"no fused backend runs on {device.type} ({why}); use the regulariser ldreg-naive instead")


def _available(backend: str) -> str:
    reason = backends()[backend]
    if reason is not None:
        raise NoBackendError(f"regularisers.backend: {backend} is unavailable: {reason}")
    return backend


@dataclass
class Total:
    """The loss of a step and what went into it.

    Attributes:
        loss: [] to call backward on.
        terms: one for each regulariser.
        weights: beta of each, a number; a 0-d tensor, once backward has run, where a ratio sets it.
        ratio: [] |sum beta dR/df| / |dL/df| at the features, once backward has run; None where it was not asked for.
    """

    loss: Tensor
    terms: list[Term]
    weights: list[float | Tensor]
    ratio: Tensor | None = None


def add_terms(output: Output, regularisers: Sequence[Regulariser], time: Time, *, measure: bool = False) -> Total:
    """loss + sum of weight * value: the engine's one place.

    A regulariser at weight 0 is computed on detached features: logged, without gradient. Where a ratio sets the weight,

        beta = ratio |dL/df| / |dR/df|    (norms over all features of the batch, L the method's own loss)

    and beta dR/df joins the gradient on its way back through the features, where dL/df is known. No second backward
    pass, no synchronisation.

    Args:
        output: of the method.
        regularisers: the list.
        time: of this step.
        measure: also measure the ratio of the gradients where every weight is a number (hooks, no further pass).

    Returns:
        The total.
    """
    features, total = output.features, Total(output.loss, [], [])
    hooked = measure or any(r.ratio is not None for r in regularisers)
    # Terms with a number as weight branch off here, so that their gradient is known apart from the loss's.
    branch = features.view_as(features) if hooked else features
    numbers = output._replace(features=branch)
    balanced: list[tuple[int, float, Tensor]] = []
    added = False
    for place, regulariser in enumerate(regularisers):
        weight = regulariser.weight(time)
        if weight and regulariser.ratio is not None:
            leaf = features.detach().requires_grad_()
            term = regulariser(output._replace(features=leaf))
            balanced.append((place, regulariser.ratio, torch.autograd.grad(term.value, leaf)[0]))
        elif weight:
            term = regulariser(numbers)
            total.loss = total.loss + weight * term.value
            added = True
        else:
            term = regulariser(output._replace(features=features.detach()))
        total.terms.append(Term(term.value.detach(), term.stats))
        total.weights.append(weight)
    if balanced or (added and hooked):
        _watch(total, features, branch if added else None, balanced)
    return total


def _watch(
    total: Total, features: Tensor, branch: Tensor | None, balanced: Sequence[tuple[int, float, Tensor]]
) -> None:
    """Hooks that add the balanced terms' gradients at the features, and leave weights and ratio in `total`.

    Args:
        total: is completed when backward runs.
        features: where all gradients meet.
        branch: what the terms with numbers as weights saw, or None; its gradient arrives before the sum.
        balanced: place, ratio and gradient dR/df of each other term.
    """
    own: list[Tensor] = []

    def keep(gradient: Tensor) -> None:
        own.append(gradient.detach())

    def complete(gradient: Tensor) -> Tensor:
        of_loss = gradient - own[0] if own else gradient
        size, changed = of_loss.norm(), gradient
        for place, ratio, slope in balanced:
            length = slope.norm()
            beta = torch.where(length > 0, ratio * size / length, torch.zeros_like(length))
            total.weights[place] = beta
            changed = changed + beta * slope
        total.ratio = (changed - of_loss).norm() / size
        return changed

    if branch is not None:
        branch.register_hook(keep)
    features.register_hook(complete)
