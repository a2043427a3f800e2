"""The views of a run: what the workers crop, what the device does, and the clean image of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import AugmentationConfig, ConfigError
from ..data import ImageData
from .crop import CentreCrop, RandomCrop, Whole, build_crops
from .device import DeviceViews
from .recipes import recipe_for, view_specs


@dataclass(frozen=True)
class Views:
    """The parts of a recipe.

    Attributes:
        crops: one for each view, for the data workers.
        device: the rest.
        clean_crop: an image to the size of the views, for the evaluation.
        image_size: side of the views in pixels.
    """

    crops: Sequence[RandomCrop | Whole]
    device: DeviceViews
    clean_crop: CentreCrop
    image_size: int


def build_views(config: AugmentationConfig, *, method: str, view_count: int, data: ImageData) -> Views:
    """The views that a configuration asks for.

    Args:
        config: recipe and changes.
        method: name of the method, for "auto".
        view_count: how many views it takes.
        data: the images.

    Returns:
        The parts.

    Raises:
        ConfigError: the images have no common size and none was given, or a setting does not go with the recipe.
    """
    size = config.image_size or _common_size(data)
    recipe = recipe_for(method, data.channels, data.name) if config.recipe == "auto" else config.recipe
    try:
        specs = view_specs(config.model_copy(update={"recipe": recipe}), view_count=view_count)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Views(
        crops=build_crops(specs, size, config.interpolation),
        device=DeviceViews(specs, channels=data.channels, size=size, normalise=config.normalise),
        clean_crop=CentreCrop(size, config.interpolation),
        image_size=size,
    )


def _common_size(data: ImageData) -> int:
    if data.image_size is None or data.image_size[0] != data.image_size[1]:
        raise ConfigError(
            f"augmentation.image_size: must be given for {data.name}, whose images are not squares of one size"
        )
    return data.image_size[0]
