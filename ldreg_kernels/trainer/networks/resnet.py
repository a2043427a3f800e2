"""ResNet-18 and ResNet-50: transformers' networks without downloaded weights, with our own stem and initialisation.

The small-image stem is the one that SimCLR uses for CIFAR (Chen et al. 2020, appendix B.9): a 3 x 3 convolution with
stride 1 and no max-pooling. The ImageNet stem would leave one pixel of an 8 x 8 image before the first block. In
ResNet-50 the stride sits in the 3 x 3 convolution of a block, as in torchvision. networks/export.py gives its weights
torchvision's names.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import ResNetConfig as ResNetSettings
from transformers import ResNetModel
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from ..config.networks import ResNetConfig
from .conv import initialise_convolutions
from .encoder import Encoder

# name: (transformers' kind of block, blocks in each stage, width of a block's output over that of its inside)
_KINDS = {"resnet18": ("basic", [2, 2, 2, 2], 1), "resnet50": ("bottleneck", [3, 4, 6, 3], 4)}


class ResNetEncoder(Encoder):
    """A ResNet up to its global average pooling: [N, C, H, W] -> [N, 8 * width], for ResNet-50 [N, 32 * width].

    Args:
        channels: C.
        config: which ResNet, its width, stem and initialisation.
    """

    def __init__(self, channels: int, config: ResNetConfig) -> None:
        super().__init__()
        block, depths, expansion = _KINDS[config.name]
        widths = [expansion * config.width * 2**stage for stage in range(4)]
        self.network = ResNetModel(
            ResNetSettings(
                num_channels=channels,
                embedding_size=config.width,
                hidden_sizes=widths,
                depths=depths,
                layer_type=block,
                downsample_in_bottleneck=False,
            )
        )
        if config.stem == "small":
            stem = self.network.embedder
            stem.embedder = ResNetConvLayer(channels, config.width, kernel_size=3, stride=1)
            stem.pooler = nn.Identity()
        self.output_dim = widths[-1]
        initialise_convolutions(self)
        if config.zero_init:
            for stage in self.network.encoder.stages:
                for residual in stage.layers:
                    nn.init.zeros_(residual.layer[-1].normalization.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch.

        Args:
            images: [N, C, H, W].

        Returns:
            [N, output_dim], after the last ReLU and the average over positions, so non-negative.
        """
        features: Tensor = self.network(images).pooler_output  # [N, D, 1, 1]
        return features.flatten(1)  # [N, D]

    def hidden(self, images: Tensor) -> dict[str, Tensor]:
        """The maps after each of the four stages, averaged over positions; see the base class."""
        maps, pooled = self.network.embedder(images), {}
        for number, stage in enumerate(self.network.encoder.stages, 1):
            maps = stage(maps)
            pooled[f"stage{number}"] = self.network.pooler(maps).flatten(1)
        return pooled
