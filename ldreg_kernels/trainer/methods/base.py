"""What the engine and a method say to each other: the time, a batch, what a step gives, and the hooks around it.

A method owns its networks and its loss. It knows nothing of regularisers, optimisers, files or logs: it hands out the
features that a regulariser acts on, and the engine adds the terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..networks.encoder import Encoder


class Time(NamedTuple):
    """Where a run stands. Every schedule is a pure function of it, so there is no schedule to save."""

    step: int  # optimiser steps finished
    steps: int  # in the whole run
    epoch: int  # from 0


class Batch(NamedTuple):
    """One step's views on the device, with what is known of their images on the CPU."""

    views: list[Tensor]  # [N, C, H, W] each; global crops first
    labels: Tensor | None  # [N] int64; for evaluation only
    index: Tensor  # type: ignore[assignment]  # [N] int64, place in the source; hides tuple.index


class Output(NamedTuple):
    """What a method's forward returns.

    `features` are what a regulariser acts on: the encoder's outputs, never the projector's.
    """

    loss: Tensor  # [] float32, this process's mean
    features: Tensor  # [Q, D] attached; of the global crops, view 1 stacked on view 2 (MAE: CLS after the norm, Q = N)
    extra_references: Tensor | None = None  # [M, D] detached (BYOL: the momentum encoder's, of both views)
    projections: Tensor | None = None  # [Q, P]
    logs: Mapping[str, Tensor] = {}  # 0-d, detached


@dataclass(frozen=True)
class Group:
    """Parameters that share their rules; the optimiser splits off what gets no weight decay."""

    parameters: Mapping[str, nn.Parameter]  # by their names in the method
    lr_scale: float = 1.0
    constant_lr: bool = False  # no warm-up, no cosine (SimSiam's predictor)


def at_least_float32(features: Tensor) -> Tensor:
    """Features as an `Output` hands them out: mixed precision must not come between them and the loss.

    Distances want float32, and a regulariser that watches the gradient at the features sees the loss's only if the loss
    is computed from this very tensor, not from one that was converted later.

    Args:
        features: of an encoder, perhaps in half precision.

    Returns:
        The same in float32; float64 stays.
    """
    return features.to(torch.promote_types(features.dtype, torch.float32))


class Method(nn.Module):
    """A self-supervised method.

    Attributes:
        encoder: the online encoder; what is kept after training.
        view_count: how many views of an image `forward` expects.
    """

    encoder: Encoder
    view_count: int = 2

    @classmethod
    def build(cls, config: Any, encoder: Encoder, channels: int) -> Method:
        """The method a configuration asks for; fresh weights from torch's global generator.

        Args:
            config: the method's own settings.
            encoder: the encoder.
            channels: of the images.

        Returns:
            The method.
        """
        raise NotImplementedError

    def forward(self, views: Sequence[Tensor], time: Time) -> Output:
        """Loss and features of the views of N images; the one call that data-parallel hooks watch.

        Args:
            views: `view_count` tensors [N, C, H, W].
            time: of this step.

        Returns:
            The output.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[Group]:
        """Everything that is trained, in one group unless the method says otherwise."""
        return [Group({name: p for name, p in self.named_parameters() if p.requires_grad})]

    def before_step(self, time: Time) -> None:
        """Before the forward pass."""

    def after_backward(self, time: Time) -> None:
        """Between the backward pass and the optimiser's step: gradients may be changed."""

    def after_step(self, time: Time) -> None:
        """After the optimiser's step: moving averages follow."""
