"""What MAE needs beside its encoder: which patches stay visible, and the decoder that guesses the others.

The encoder is networks/vit.py; the loss belongs to the method.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config.networks import MAEDecoderConfig
from .vit import LAYER_NORM_EPS, initialise_transformer, sincos_positions, transformer_layers


def random_masking(count: int, patches: int, ratio: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each image, a uniform choice of the patches that stay visible, from torch's global generator.

    V = floor(patches * (1 - ratio)), as in the published code; a product that is a whole number but for the rounding
    of `ratio` counts as whole.

    Args:
        count: N, images.
        patches: L, patches of an image.
        ratio: share of them that is masked, 0 <= ratio < 1.
        device: where the results are made.

    Returns:
        keep [N, V] int64, the visible patches in random order; mask [N, L] float32, 1 where a patch is masked;
        restore [N, L] int64, the place of each patch among the visible ones followed by the masked ones.

    Raises:
        ValueError: `ratio` is out of range or leaves no patch visible.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be at least 0 and below 1, got {ratio}")
    visible = visible_patches(patches, ratio)
    if visible < 1:
        raise ValueError(f"ratio {ratio} leaves none of {patches} patches visible")
    order = torch.rand(count, patches, device=device).argsort(1)
    restore = order.argsort(1)
    mask = (restore >= visible).float()
    return order[:, :visible], mask, restore


def visible_patches(patches: int, ratio: float) -> int:
    """How many patches of an image stay visible: floor(patches * (1 - ratio)), up to the rounding of `ratio`.

    Args:
        patches: L, patches of an image.
        ratio: share of them that is masked.

    Returns:
        V.
    """
    return math.floor(patches * (1 - ratio) + 1e-6)


class MAEDecoder(nn.Module):
    """MAE's decoder: encoded visible patches in, the pixels of every patch out.

    Args:
        encoder_dim: width of the encoder's tokens.
        patch_count: L, a square number.
        patch_pixels: values of a patch.
        config: width, depth and heads.

    Raises:
        ValueError: the patches are not a square grid.
    """

    positions: Tensor

    def __init__(self, encoder_dim: int, patch_count: int, patch_pixels: int, config: MAEDecoderConfig) -> None:
        super().__init__()
        side = math.isqrt(patch_count)
        if side * side != patch_count:
            raise ValueError(f"patch_count must be a square number, got {patch_count}")
        self.embedding = nn.Linear(encoder_dim, config.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.register_buffer("positions", sincos_positions(side, config.dim), persistent=False)  # [1 + L, dim]
        self.layers = transformer_layers(config.dim, config.depth, config.heads)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.pixels = nn.Linear(config.dim, patch_pixels)
        initialise_transformer(self, fused=True)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """The pixels of every patch.

        Args:
            tokens: [N, 1 + V, encoder_dim], CLS and the visible patches, from `ViTEncoder.masked`.
            restore: [N, L] from `random_masking`.

        Returns:
            [N, L, patch_pixels], patches row by row.
        """
        tokens = self.in_place(self.embedding(tokens), restore) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        return self.pixels(self.norm(tokens[:, 1:]))

    def in_place(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """CLS, then every patch where it belongs, with the mask token for the masked ones.

        Args:
            tokens: [N, 1 + V, dim].
            restore: [N, L].

        Returns:
            [N, 1 + L, dim].
        """
        count, visible = len(tokens), tokens.shape[1] - 1
        masked = self.mask_token.expand(count, restore.shape[1] - visible, -1)
        patches = torch.cat([tokens[:, 1:], masked], 1)  # [N, L, dim], the visible ones first
        patches = patches.gather(1, restore[..., None].expand(-1, -1, patches.shape[2]))
        return torch.cat([tokens[:, :1], patches], 1)
