"""MAE (He et al. 2022): predict the pixels of masked patches from the visible quarter.

    tokens = encoder(visible patches),  prediction = decoder(tokens, mask tokens)
    loss = mean over masked patches of the mean squared error, targets standardised per patch (norm_pix)

The regulariser acts on the CLS token after the encoder's last norm, N rows. Such tokens share a large common part,
where distances by matrix products fail; the published code switches to plain differences for this method alone. Our
op is exact by construction, so there is nothing to switch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...losses.mae import mae_loss
from ..config import ConfigError, MAEConfig
from ..networks.encoder import Encoder
from ..networks.mae import MAEDecoder, random_masking, visible_patches
from ..networks.vit import ViTEncoder
from .base import Method, Output, Time, at_least_float32


class MAE(Method):
    """A ViT that sees the visible patches, and the decoder that fills in the rest.

    Args:
        encoder: the ViT.
        decoder: tokens of visible patches to pixels of all.
        mask_ratio: share of masked patches.
        norm_pix: standardise the targets per patch.
    """

    encoder: ViTEncoder
    view_count = 1

    def __init__(self, encoder: ViTEncoder, decoder: MAEDecoder, mask_ratio: float, norm_pix: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.mask_ratio = mask_ratio
        self.norm_pix = norm_pix

    @classmethod
    def build(cls, config: MAEConfig, encoder: Encoder, channels: int) -> MAE:
        """MAE with the heads that a configuration asks for."""
        if not isinstance(encoder, ViTEncoder):
            raise TypeError(f"encoder must be a ViTEncoder for MAE, got {type(encoder).__name__}")
        visible = visible_patches(encoder.patch_count, config.mask_ratio)
        if not 0 < visible < encoder.patch_count:
            raise ConfigError(
                f"method.mask_ratio: must leave some of {encoder.patch_count} patches visible and some masked, got "
                f"{config.mask_ratio}; encoder.patch_size is {encoder.patch_size}"
            )
        pixels = channels * encoder.patch_size**2
        if config.norm_pix and pixels < 2:
            raise ConfigError("method.norm_pix: must be false where a patch is a single value, got true")
        decoder = MAEDecoder(encoder.output_dim, encoder.patch_count, pixels, config.decoder)
        return cls(encoder, decoder, config.mask_ratio, config.norm_pix)

    def forward(self, views: Sequence[Tensor], time: Time) -> Output:
        """Loss and CLS features [N, D] of one view [N, C, H, W]; the mask from torch's global generator."""
        (images,) = views
        keep, mask, restore = random_masking(len(images), self.encoder.patch_count, self.mask_ratio, images.device)
        cls, *patches = self.encoder.masked(images, keep).split([1, keep.shape[1]], dim=1)  # [N, 1, D], [N, V, D]
        features = at_least_float32(cls.squeeze(1))  # [N, D]
        # The decoder gets CLS from `features`, so that its gradient there is the whole of dL/df: what the gradient
        # ratio of a regulariser is measured against.
        prediction = self.decoder(torch.cat([features.unsqueeze(1), *patches], dim=1), restore)  # [N, L, pixels]
        loss = mae_loss(prediction, self.encoder.patchify(images), mask, norm_pix=self.norm_pix)
        return Output(loss, features)
