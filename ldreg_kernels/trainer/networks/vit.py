"""Vision transformers: one encoder for SimCLR, BYOL and MAE, with and without masked patches.

The blocks are transformers' `ViTLayer`. Everything around them is ours, because what transformers 5.24 offers around
them does not train as published: `ViTMAEModel` built from scratch leaves its positions, its CLS and its mask token at
exactly 0 and freezes the positions, so that it cannot tell where a patch was; it masks in evaluation too; and it
shuffles the patches even with nothing to mask, which changes the features' last digits from call to call. `ViTModel`
learns its positions from a random start and takes no subset of patches. Both have 1e-12 in their layer norms, where
MAE and MoCo v3 have 1e-6.

Here: fixed two-dimensional sin-cos positions, CLS at position 0, features = CLS after the last layer norm, and
`masked` for the patches that MAE leaves visible.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import ViTConfig as ViTSettings
from transformers.models.vit.modeling_vit import ViTLayer

from ...losses.mae import patchify
from ..config.base import ConfigError
from ..config.networks import ViTConfig
from .encoder import Encoder

LAYER_NORM_EPS = 1e-6

# name: (width, depth, heads)
_SIZES = {"vit-micro": (96, 6, 3), "vit-tiny": (192, 12, 3), "vit-small": (384, 12, 6), "vit-base": (768, 12, 12)}


class ViTEncoder(Encoder):
    """A ViT whose features are the CLS token after the last layer norm: [N, C, H, W] -> [N, width].

    Args:
        channels: C.
        image_size: H and W.
        config: its size, patches and initialisation.

    Attributes:
        patch_count: L, patches of an image.
        patch_pixels: values of a patch, C * patch_size^2.

    Raises:
        ConfigError: the patches do not fill the image.
    """

    positions: Tensor

    def __init__(self, channels: int, image_size: int, config: ViTConfig) -> None:
        super().__init__()
        size = config.patch_size or default_patch_size(image_size)
        if image_size % size:
            raise ConfigError(f"encoder.patch_size must divide the image's side of {image_size} pixels, got {size}")
        self.output_dim, depth, heads = _SIZES[config.name]
        self.image_shape = (channels, image_size, image_size)
        self.patch_size = size
        side = image_size // size
        self.patch_count = side * side
        self.patch_pixels = channels * size**2

        self.patch_embedding = nn.Conv2d(channels, self.output_dim, size, stride=size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.output_dim))
        # Not in the state dict: they follow from the sizes.
        self.register_buffer("positions", sincos_positions(side, self.output_dim), persistent=False)  # [1 + L, D]
        self.layers = transformer_layers(self.output_dim, depth, heads)
        self.norm = nn.LayerNorm(self.output_dim, eps=LAYER_NORM_EPS)

        fused = config.initialisation == "mae"
        initialise_transformer(self, fused=fused)
        nn.init.normal_(self.cls_token, std=0.02 if fused else 1e-6)
        if config.frozen_patch_embedding:
            self.patch_embedding.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch, with every patch visible: [N, C, H, W] -> [N, output_dim]."""
        return self._through_layers(self._embed(images))[:, 0]

    def masked(self, images: Tensor, keep: Tensor) -> Tensor:
        """All tokens after the last norm, of the visible patches alone (MAE's encoder while it trains).

        Args:
            images: [N, C, H, W].
            keep: [N, V] int64, the patches of each image that stay, from 0 to patch_count - 1.

        Returns:
            [N, 1 + V, output_dim]: CLS, then the patches in the order of `keep`.
        """
        patches = self._embed(images)  # [N, L, D]
        visible = patches.gather(1, keep[..., None].expand(-1, -1, self.output_dim))
        return self._through_layers(visible)

    def hidden(self, images: Tensor) -> dict[str, Tensor]:
        """CLS after each layer, after the last one behind the norm; see the base class."""
        tokens, rows = self._with_cls(self._embed(images)), {}
        for number, layer in enumerate(self.layers, 1):
            tokens = layer(tokens)
            rows[f"layer{number}"] = tokens[:, 0]
        rows[f"layer{len(self.layers)}"] = self.norm(tokens)[:, 0]
        return rows

    def patchify(self, images: Tensor) -> Tensor:
        """The pixels of each patch, which MAE predicts.

        Args:
            images: [N, C, H, W].

        Returns:
            [N, L, patch_pixels]; patches row by row, in a patch row, column, channel.
        """
        return patchify(images, self.patch_size)

    def _embed(self, images: Tensor) -> Tensor:
        """Patches with their positions: [N, C, H, W] -> [N, L, D]."""
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images must be [N, {', '.join(map(str, self.image_shape))}], got {list(images.shape)}")
        return self.patch_embedding(images).flatten(2).transpose(1, 2) + self.positions[1:]

    def _with_cls(self, patches: Tensor) -> Tensor:
        cls_token = (self.cls_token + self.positions[0]).expand(len(patches), -1, -1)
        return torch.cat([cls_token, patches], 1)

    def _through_layers(self, patches: Tensor) -> Tensor:
        tokens = self._with_cls(patches)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


def default_patch_size(image_size: int) -> int:
    """16 for the photographs that ViTs are made for, smaller where fewer than seven would fill a side.

    Args:
        image_size: side of the images in pixels.

    Returns:
        The largest power of two that divides the side, is at most 16 and at most a seventh of it (but 2 always is
        small enough): 16 of 224, 4 of 32 and of 28, 2 of 8.
    """
    sizes = (16, 8, 4, 2, 1)
    return next(size for size in sizes if image_size % size == 0 and size <= max(2, image_size / 7))


def transformer_layers(width: int, depth: int, heads: int) -> nn.ModuleList:
    """Pre-norm transformer blocks with biases, GELU, a hidden width of 4 * width and no dropout.

    Args:
        width: of the tokens.
        depth: how many blocks.
        heads: of the attention; they divide the width.

    Returns:
        The blocks, each [N, T, width] -> [N, T, width]; transformers' initialisation is still in them.
    """
    settings = ViTSettings(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        layer_norm_eps=LAYER_NORM_EPS,
        attn_implementation="sdpa",
    )
    return nn.ModuleList(ViTLayer(settings) for _ in range(depth))


def initialise_transformer(network: nn.Module, *, fused: bool) -> None:
    """Xavier-uniform weights and zero biases; layer norms begin as 1 and 0.

    MAE's published code holds q, k and v in one [3D, D] matrix, whose Xavier bound is sqrt(6 / 4D). MoCo v3 takes
    the bound of each, sqrt(6 / 2D), which is larger. Both count the patch embedding as the matrix [D, C * patch^2]
    that it is. (MAE leaves its bias at torch's default; here it is 0 too.)

    Args:
        network: changed in place.
        fused: q, k and v get the bound of the one matrix.
    """
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))  # as given, a kernel's area would count twice
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if fused:
        # By attribute and not by a pattern of names: a version of transformers with other names fails loudly here.
        attentions = [module.attention for module in network.modules() if isinstance(module, ViTLayer)]
        for attention in attentions:
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                bound = math.sqrt(6 / (projection.in_features + 3 * projection.out_features))
                nn.init.uniform_(projection.weight, -bound, bound)


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed positions of a square grid of patches (Vaswani et al. 2017 in two dimensions, as MAE and MoCo v3 have).

    A quarter of the width each: sin(row w_i), cos(row w_i), sin(column w_i), cos(column w_i) with
    w_i = 10000^(-i / (width / 4)).

    Args:
        side: patches in a row and in a column.
        width: of a token, a multiple of 4.

    Returns:
        [1 + side^2, width] float32; the first row belongs to CLS and is 0.
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency  # [side, D/4]
    line = torch.cat([angle.sin(), angle.cos()], 1)  # [side, D/2]
    rows, columns = line.repeat_interleave(side, 0), line.repeat(side, 1)  # [side^2, D/2]
    grid = torch.cat([rows, columns], 1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), grid]).float()
