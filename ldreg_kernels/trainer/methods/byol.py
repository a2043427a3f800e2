"""BYOL (Grill et al. 2020): predict what a slowly moving copy of the network makes of the other view.

    f = encoder(view),  z = projector(f),  p = predictor(z);    f', z' the same by the momentum networks, no gradient
    loss = mean_i [(2 - 2 cos(p1, z2')) + (2 - 2 cos(p2, z1'))]
    momentum networks <- m momentum networks + (1 - m) online ones,   m from m0 to 1 by a cosine, after each step

The momentum networks begin as an exact copy, their batch normalisation sees its own batch (training mode), and only
parameters move: the set-up of methods that work, not of the released LDReg script, which starts the copy from other
weights on every process.

For LDReg the momentum encoder's features are further references: 2N queries against 4B rows, self_index 0. The
published code computes one term for each view and adds the two, which is twice the mean over 2N rows taken here: its
weight beta (0.005) is 2 beta = 0.01 here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...losses.byol import byol_loss
from ..config import BYOLConfig
from ..networks.encoder import Encoder
from ..networks.heads import byol_predictor, byol_projector
from ..networks.momentum import MomentumCopy
from ..optim.schedules import ema_momentum
from .base import Method, Output, Time, at_least_float32


class BYOL(Method):
    """Online encoder, projector and predictor, and the momentum copy of the first two.

    Args:
        encoder: images [N, C, H, W] to features [N, D].
        projector: features [N, D] to [N, P].
        predictor: [N, P] to [N, P].
        momentum: m0.
    """

    def __init__(self, encoder: Encoder, projector: nn.Module, predictor: nn.Module, momentum: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor
        self.momentum_networks = MomentumCopy(encoder, projector)
        self.momentum_at = ema_momentum(momentum)

    @classmethod
    def build(cls, config: BYOLConfig, encoder: Encoder, channels: int) -> BYOL:
        """BYOL with the heads that a configuration asks for."""
        projector = byol_projector(encoder.output_dim, config.projector.hidden_dim, config.projector.output_dim)
        predictor = byol_predictor(config.projector.output_dim, config.predictor.hidden_dim)
        return cls(encoder, projector, predictor, config.ema_momentum)

    def forward(self, views: Sequence[Tensor], time: Time) -> Output:
        """Loss and features [2N, D] of two views [N, C, H, W]; the momentum features [2N, D] as extra references."""
        images = torch.cat(list(views))  # [2N, C, H, W]
        features = at_least_float32(self.encoder(images))  # [2N, D]
        projections = self.projector(features)  # [2N, P]
        p1, p2 = self.predictor(projections).chunk(2)
        momentum_features, targets = self.momentum_networks(images)  # [2N, D], [2N, P]
        z1, z2 = targets.chunk(2)
        extra = at_least_float32(momentum_features)
        return Output(byol_loss(p1, p2, z1, z2), features, extra, projections)

    def after_step(self, time: Time) -> None:
        """Move the momentum networks."""
        self.momentum_networks.update(self.encoder, self.projector, momentum=self.momentum_at(time))
