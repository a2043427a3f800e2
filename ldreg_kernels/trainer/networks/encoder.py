"""What every encoder is: images in, one feature row per image out, and its layers on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from ..config.networks import EncoderConfig


class Encoder(nn.Module):
    """Images [N, C, H, W] to features [N, output_dim].

    Attributes:
        output_dim: width of the features.
    """

    output_dim: int

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch: [N, C, H, W] -> [N, output_dim]."""
        raise NotImplementedError

    def hidden(self, images: Tensor) -> dict[str, Tensor]:
        """Features after every stage or layer, one row per image, in the order of the network.

        Args:
            images: [N, C, H, W].

        Returns:
            {layer name: [N, width of the layer]}; the last one is what `forward` returns.
        """
        raise NotImplementedError


def build_encoder(config: EncoderConfig, *, channels: int, image_size: int) -> Encoder:
    """The encoder that a configuration asks for, freshly initialised from torch's global generator.

    Args:
        config: which network, and its settings.
        channels: C of the images.
        image_size: their height and width, of which only a ViT takes notice.

    Returns:
        The encoder.

    Raises:
        ConfigError: the patches of a ViT do not fill the image.
    """
    # Imported here: each of them imports this file, and two of them transformers, which takes seconds.
    from ..config.networks import ConvConfig, ResNetConfig

    if isinstance(config, ConvConfig):
        from .conv import ConvEncoder

        return ConvEncoder(channels, config)
    if isinstance(config, ResNetConfig):
        from .resnet import ResNetEncoder

        return ResNetEncoder(channels, config)
    from .vit import ViTEncoder

    return ViTEncoder(channels, image_size, config)
