"""The momentum encoder: a frozen copy of the online networks that follows them slowly.

Parameters follow by an exponential moving average. Buffers do not: the copy's batch normalisations run their own
forward passes in training mode and so keep their own running statistics, as DeepMind's BYOL does.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn


class MomentumCopy(nn.Module):
    """A copy of networks that are run one after another, such as an encoder and its projector.

    It begins equal to the online networks. (DeepMind's and LDReg's code initialise it apart; nothing in the method
    asks for that.)

    Args:
        networks: the online networks, in the order in which they run; they are left alone.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(copy.deepcopy(network) for network in networks)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """What each network gives out, without gradient; each one reads what the one before gave.

        Args:
            images: [N, C, H, W].

        Returns:
            One tensor for each network: features [N, D], projections [N, P].
        """
        outputs: list[Tensor] = []
        for network in self.networks:
            outputs.append(network(outputs[-1] if outputs else images))
        return outputs

    @torch.no_grad()
    def update(self, *networks: nn.Module, momentum: float) -> None:
        """theta' <- momentum * theta' + (1 - momentum) * theta, for every parameter.

        Args:
            networks: the online networks, as they were given at the beginning.
            momentum: from 0 (become them) to 1 (stay).

        Raises:
            ValueError: `momentum` is out of range, or the networks are others.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be from 0 to 1, got {momentum}")
        online = dict(nn.ModuleList(networks).named_parameters())
        own = dict(self.networks.named_parameters())
        if [(name, p.shape) for name, p in online.items()] != [(name, p.shape) for name, p in own.items()]:
            raise ValueError("networks must be those that were copied: their parameters have other names or shapes")
        torch._foreach_lerp_(
            cast(list[Tensor], list(own.values())), cast(list[Tensor], list(online.values())), 1 - momentum
        )
