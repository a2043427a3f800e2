"""Settings of the self-supervised methods, one model each, told apart by `name`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Section
from .networks import MAEDecoderConfig, PredictorConfig, ProjectorConfig


class SimCLRConfig(Section):
    """SimCLR (Chen et al. 2020): NT-Xent between two views. SimCLR-Tuned is a preset of it."""

    name: Literal["simclr"] = "simclr"
    temperature: float = Field(0.2, gt=0)
    projector: ProjectorConfig = ProjectorConfig()


class BYOLConfig(Section):
    """BYOL (Grill et al. 2020): predict the momentum encoder's projection of the other view."""

    name: Literal["byol"] = "byol"
    ema_momentum: float = Field(0.996, ge=0, le=1, description="at step 0; rises to 1 by a cosine")
    projector: ProjectorConfig = ProjectorConfig()
    predictor: PredictorConfig = PredictorConfig()

    @model_validator(mode="after")
    def _projector_has_two_layers(self) -> BYOLConfig:
        if self.projector.layers != 2 or self.projector.hidden_bias:
            raise ValueError("projector.layers and projector.hidden_bias have no meaning for byol, leave them out")
        return self


class MAEConfig(Section):
    """MAE (He et al. 2022): predict the pixels of masked patches from the visible ones."""

    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that the encoder does not see")
    norm_pix: bool = Field(True, description="targets are standardised per patch")
    decoder: MAEDecoderConfig = MAEDecoderConfig()


MethodConfig = Annotated[SimCLRConfig | BYOLConfig | MAEConfig, Field(discriminator="name")]

# Every method, and the rows that a regulariser may search for each image of a batch.
REFERENCES_PER_IMAGE = {"simclr": 2, "byol": 4, "mae": 1}
