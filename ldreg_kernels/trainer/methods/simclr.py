"""SimCLR (Chen et al. 2020): pull two views of an image together, push all other images away.

    f = encoder(view),  z = projector(f),  loss = NT-Xent(z1, z2)

SimCLR-Tuned (Garrido et al. 2023) is the same code with other constants: the preset `simclr-tuned`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...losses.ntxent import nt_xent_loss
from ..config import SimCLRConfig
from ..networks.encoder import Encoder
from ..networks.heads import simclr_projector
from .base import Method, Output, Time, at_least_float32


class SimCLR(Method):
    """Encoder and projector under NT-Xent, as a mean over the 2N rows.

    Args:
        encoder: images [N, C, H, W] to features [N, D].
        projector: features [N, D] to [N, P].
        temperature: of NT-Xent.
    """

    def __init__(self, encoder: Encoder, projector: nn.Module, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.temperature = temperature

    @classmethod
    def build(cls, config: SimCLRConfig, encoder: Encoder, channels: int) -> SimCLR:
        """SimCLR with the heads that a configuration asks for."""
        p = config.projector
        projector = simclr_projector(
            encoder.output_dim, p.hidden_dim, p.output_dim, layers=p.layers, hidden_bias=p.hidden_bias
        )
        return cls(encoder, projector, config.temperature)

    def forward(self, views: Sequence[Tensor], time: Time) -> Output:
        """Loss and features [2N, D] of two views [N, C, H, W]."""
        # One pass over both views: batch normalisation sees 2N rows, and so do the regulariser's distances.
        features = at_least_float32(self.encoder(torch.cat(list(views))))  # [2N, D]
        projections = self.projector(features)  # [2N, P]
        z1, z2 = projections.chunk(2)
        return Output(nt_xent_loss(z1, z2, temperature=self.temperature), features, projections=projections)
