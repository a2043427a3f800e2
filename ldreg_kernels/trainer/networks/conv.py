"""A small convolutional encoder for experiments on CPUs: a stem with stride 2 and four stages of one convolution.

At width 16 it has 0.1 M weights. Stages 2 to 4 halve the side, so that an image of 28 x 28 ends as 2 x 2 and one of
8 x 8 as a single pixel; both are then averaged.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..config.networks import ConvConfig
from .encoder import Encoder


class ConvEncoder(Encoder):
    """Convolution, BN, ReLU five times, and the average over positions: [N, C, H, W] -> [N, 8 * width].

    Args:
        channels: C.
        config: the width.
    """

    def __init__(self, channels: int, config: ConvConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = _layer(channels, width, stride=2)
        self.stages = nn.ModuleList(
            [
                _layer(width, width, stride=1),
                _layer(width, 2 * width, stride=2),
                _layer(2 * width, 4 * width, stride=2),
                _layer(4 * width, 8 * width, stride=2),
            ]
        )
        self.output_dim = 8 * width
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch: [N, C, H, W] -> [N, output_dim], non-negative."""
        maps = self.stem(images)
        for stage in self.stages:
            maps = stage(maps)
        return maps.mean((2, 3))

    def hidden(self, images: Tensor) -> dict[str, Tensor]:
        """Each stage's maps, averaged over positions; see the base class."""
        maps, pooled = self.stem(images), {}
        for number, stage in enumerate(self.stages, 1):
            maps = stage(maps)
            pooled[f"stage{number}"] = maps.mean((2, 3))
        return pooled


def initialise_convolutions(network: nn.Module) -> None:
    """Every convolution from N(0, 2 / fan out), which is He's (2015) for ReLU; batch normalisations keep 1 and 0.

    Args:
        network: changed in place.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class _Convolution(nn.Conv2d):
    """A padded 3 x 3 convolution. Of a single pixel it is its centre, and then computed as that.

    The other weights' gradient is 0. oneDNN (in torch 2.13) returns for it memory that nobody wrote, NaN at times: with
    stride 2, in bfloat16, on processors that have AVX-512's bf16.
    """

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        if input.shape[2:] == (1, 1):
            return F.conv2d(input, self.weight[:, :, 1:2, 1:2])
        return super().forward(input)


def _layer(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _Convolution(channels, width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
