"""Settings of the random views: a recipe by name, and what to change about it.

What a recipe holds stands in views/recipes.py. Which settings go with which recipe is checked there too, once "auto"
has become a name: this file knows ranges only.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Section

Recipe = Literal["auto", "simclr", "byol", "moco-v2", "mae", "grey", "strokes"]
Interpolation = Literal["bicubic", "bilinear"]
Normalise = Literal["none", "imagenet"]

# Settings of earlier versions, when digits were the only images.
_MOVED = ("degrees", "translate", "scale", "shear", "brightness", "contrast")


class StrokesConfig(Section):
    """Strengths of the recipe `strokes` (handwritten digits); the reasons stand in views/recipes.py."""

    degrees: float = Field(15.0, ge=0, le=180)
    translate: float = Field(0.1, ge=0, le=0.5, description="largest shift, as a fraction of the image side")
    scale: tuple[float, float] = Field((0.8, 1.3), description="zoom")
    shear: float = Field(10.0, ge=0, le=60, description="degrees")
    brightness: float = Field(0.2, ge=0, le=1, description="largest shift of the grey values")
    contrast: float = Field(0.4, ge=0, lt=1, description="largest relative change of the grey values")
    noise_std: float = Field(0.05, ge=0, le=1)

    @field_validator("scale")
    @classmethod
    def _scale_is_a_range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        low, high = scale
        if not 0 < low <= high:
            raise ValueError(f"must be 0 < low <= high, got [{low}, {high}]")
        return scale


class AugmentationConfig(Section):
    """How the views of an image are drawn. What is None leaves the recipe as it is; what is not lies over all views."""

    recipe: Recipe = Field("auto", description="auto chooses by method and data set")
    image_size: int | None = Field(
        None,
        ge=4,
        le=1024,
        description="side of the views in pixels; None: the images' own size, if they share one",
    )
    crop_scale: tuple[float, float] | None = Field(None, description="area of the crop, as a fraction of the image's")
    jitter_strength: float | None = Field(
        None, ge=0, le=2, description="factor on brightness, contrast, saturation and hue; 0.5 for CIFAR"
    )
    blur: bool | None = Field(None, description="false takes blur out (CIFAR), true puts p = 0.5 where there is none")
    flip: float | None = Field(None, ge=0, le=1, description="probability of a mirrored view")
    noise_std: float | None = Field(None, ge=0, le=1, description="of Gaussian noise, in units of the range [0, 1]")
    interpolation: Interpolation = "bicubic"
    normalise: Normalise = Field("none", description="imagenet: mean and deviation of its channels, after all else")
    strokes: StrokesConfig = StrokesConfig()

    @model_validator(mode="before")
    @classmethod
    def _say_where_settings_went(cls, values: Any) -> Any:
        moved = [name for name in _MOVED if isinstance(values, dict) and name in values]
        if moved:
            raise ValueError("; ".join(f"the setting {name} is now augmentation.strokes.{name}" for name in moved))
        return values

    @field_validator("crop_scale")
    @classmethod
    def _crop_scale_is_a_range(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"must be 0 < low <= high <= 1, got [{scale[0]}, {scale[1]}]")
        return scale
