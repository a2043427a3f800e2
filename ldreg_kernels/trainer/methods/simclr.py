"""SimCLR (Chen et al. 2020): pull two views of an image together, push all other images away.

    f = encoder(view),  z = projector(f),  loss = NT-Xent(z1, z2)

The regulariser acts on f, never on z; it is not part of the method, so the method hands f out and the engine
adds the term.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...losses.ntxent import nt_xent_loss
from ..backbones import ResNetEncoder, build_encoder
from ..config import TrainConfig
from ..heads import simclr_projector


class MethodOutput(NamedTuple):
    """What a method's forward returns."""

    loss: Tensor  # [] the self-supervised loss
    features: Tensor  # [2N, D] online encoder outputs, view 1 stacked on view 2, attached to the graph


class SimCLR(nn.Module):
    """Encoder and projector under NT-Xent.

    Args:
        encoder: images [N, C, H, W] to features [N, D].
        projector: features [N, D] to [N, P].
        temperature: of NT-Xent.
    """

    def __init__(self, encoder: ResNetEncoder, projector: nn.Module, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.temperature = temperature

    def forward(self, view1: Tensor, view2: Tensor) -> MethodOutput:
        """Loss and features of two views of the same images.

        Args:
            view1: [N, C, H, W].
            view2: [N, C, H, W].

        Returns:
            The loss, and the features of both views.
        """
        # One pass over both views: batch normalisation sees 2N rows, and so do the regulariser's distances.
        features = self.encoder(torch.cat([view1, view2]))  # [2N, D]
        z1, z2 = self.projector(features).chunk(2)  # [N, P] each
        return MethodOutput(nt_xent_loss(z1, z2, temperature=self.temperature), features)


def build_method(config: TrainConfig, channels: int) -> SimCLR:
    """The method a configuration asks for, with fresh weights drawn from torch's global generator.

    Args:
        config: the run's configuration.
        channels: channels of the images.

    Returns:
        The method.
    """
    encoder = build_encoder(config.encoder, channels)
    projector = simclr_projector(encoder.output_dim, config.projector.hidden_dim, config.projector.output_dim)
    return SimCLR(encoder, projector, config.temperature)
