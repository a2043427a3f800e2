"""Which networks a run trains: the encoder, the heads behind it, MAE's decoder.

Defaults are those of small images on a CPU. What a configuration of the paper needs is said beside each field.
What this file does not do: build anything; see networks/.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Section


class ConvConfig(Section):
    """A convolutional net of five layers for CPUs: 0.1 M weights at width 16; features are 8 * width wide."""

    name: Literal["conv"] = "conv"
    width: int = Field(16, ge=4, le=256, description="channels of the stem and of the first stage")


class ResNetConfig(Section):
    """ResNet-18 (features 8 * width wide) or ResNet-50 (32 * width)."""

    name: Literal["resnet18", "resnet50"] = "resnet18"
    width: int = Field(64, ge=8, le=256, description="channels of the stem; 64 is the published network")
    stem: Literal["imagenet", "small"] = Field(
        "small",
        description="imagenet: 7 x 7 with stride 2 and max-pooling; small: 3 x 3 with stride 1 and no pooling, which "
        "SimCLR uses for CIFAR",
    )
    zero_init: bool = Field(
        False, description="start each residual block as the identity: scale 0 in its last batch normalisation"
    )


class ViTConfig(Section):
    """A vision transformer: width/depth/heads 96/6/3 (micro), 192/12/3 (tiny), 384/12/6 (small), 768/12/12 (base)."""

    name: Literal["vit-micro", "vit-tiny", "vit-small", "vit-base"] = "vit-micro"
    patch_size: int | None = Field(
        None, ge=1, description="side of a patch in pixels; it must divide the image's side; None: by the image's size"
    )
    frozen_patch_embedding: bool = Field(False, description="MoCo v3's stabiliser; on for SimCLR with ViT-B in LDReg")
    initialisation: Literal["mae", "moco-v3"] = Field(
        "mae",
        description="mae: Xavier bounds of the fused q, k, v matrix, CLS of sigma 0.02; moco-v3: of q, k and v apart, "
        "CLS of sigma 1e-6",
    )


EncoderConfig = Annotated[ConvConfig | ResNetConfig | ViTConfig, Field(discriminator="name")]


class ProjectorConfig(Section):
    """The head behind the encoder.

    The paper: 2048 and 128 for SimCLR, 8192 and 512 in three layers for SimCLR-Tuned, 4096 and 256 for BYOL.
    """

    hidden_dim: int = Field(512, ge=2)
    output_dim: int = Field(128, ge=2)
    layers: int = Field(2, ge=2, le=4, description="linear layers")
    hidden_bias: bool = Field(False, description="biases in the hidden layers; SimCLR-Tuned has them")


class PredictorConfig(Section):
    """BYOL's head behind the projector, which gives as many numbers as it takes. The paper: 4096."""

    hidden_dim: int = Field(512, ge=2)


class MAEDecoderConfig(Section):
    """MAE's decoder. The paper: dim 512, depth 8, heads 16."""

    dim: int = Field(64, ge=4, multiple_of=4, description="a multiple of 4, for the sin-cos positions")
    depth: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> MAEDecoderConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={self.dim}, heads={self.heads}")
        return self
