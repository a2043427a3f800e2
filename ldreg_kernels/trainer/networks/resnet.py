"""Encoders: images in, one feature row per image out. The networks are transformers' own, without downloaded
weights.

ResNet-18 gets the small-image stem that SimCLR uses for CIFAR (Chen et al. 2020, appendix B.9): a 3 x 3
convolution with stride 1 and no max-pooling. The ImageNet stem would leave one pixel of an 8 x 8 image before
the first block.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from .config import EncoderConfig


class ResNetEncoder(nn.Module):
    """A ResNet up to its global average pooling: [N, C, H, W] -> [N, 8 * width].

    Args:
        channels: C.
        width: channels of the first stage; 64 is ResNet-18.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        config = ResNetConfig(
            num_channels=channels,
            embedding_size=width,
            hidden_sizes=[width, 2 * width, 4 * width, 8 * width],
            depths=[2, 2, 2, 2],
            layer_type="basic",
        )
        self.network = ResNetModel(config)
        # The model's own initialisation must run on the new layer, or the stem would have torch's default and
        # not He's.
        stem = ResNetConvLayer(channels, width, kernel_size=3, stride=1, activation=config.hidden_act)
        stem.apply(self.network._init_weights)
        self.network.embedder.embedder = stem
        self.network.embedder.pooler = nn.Identity()
        self.output_dim = 8 * width

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch.

        Args:
            images: [N, C, H, W].

        Returns:
            [N, output_dim], after the last ReLU and the average over positions, so non-negative.
        """
        features: Tensor = self.network(images).pooler_output  # [N, D, 1, 1]
        return features.flatten(1)  # [N, D]


def build_encoder(config: EncoderConfig, channels: int) -> ResNetEncoder:
    """The encoder a configuration asks for.

    Args:
        config: name and width.
        channels: channels of the images.

    Returns:
        A freshly initialised encoder with an attribute `output_dim`.
    """
    return ResNetEncoder(channels, config.width)
