"""What happens to an image in a data worker, with Pillow alone: crop, resize, mirror. The rest is in device.py.

A crop is one resampling, by `resize(box=...)`, which is antialiased: its kernel grows with the reduction. Images of
different sizes leave here in one size, so they can be stacked. The mirror is here too, because it is free: a copy of a
few kilobytes of one small image, where the device would warp a float batch, mirrored and not, and choose.

Each image has its generator, so a crop depends on nothing else. A call takes the same number of draws whatever it does.
All classes can be pickled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .recipes import Range, ViewSpec

if TYPE_CHECKING:
    from ..config.augmentation import Interpolation

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_TRIES = 10
_CENTRE_SHARE = 0.875  # 224 of 256 pixels


class RandomCrop:
    """A rectangle of random area and shape, resized to a square, and mirrored at random.

    Area and ratio are drawn as torchvision's RandomResizedCrop draws them: the area uniformly, the ratio log-uniformly,
    up to ten times until a rectangle of whole pixels fits; then the largest centred one of an allowed ratio.
    """

    def __init__(
        self, size: int, scale: Range, ratio: Range, flip: float, interpolation: Interpolation = "bicubic"
    ) -> None:
        self.size, self.scale, self.flip, self.interpolation = size, scale, flip, interpolation
        self.ratio = ratio
        self.log_ratio = math.log(ratio[0]), math.log(ratio[1])

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """One view.

        Args:
            image: of mode "L" or "RGB".
            generator: of this image and view.

        Returns:
            [size, size], of the same mode.
        """
        draws = generator.random(2 * _TRIES + 3).tolist()  # in one call: a call costs more than its numbers
        left, top, width, height = self.rectangle(image.width, image.height, draws)
        view = _resize(image, self.size, self.size, self.interpolation, (left, top, left + width, top + height))
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draws[-1] < self.flip else view

    def rectangle(self, image_width: int, image_height: int, draws: Sequence[float]) -> tuple[int, int, int, int]:
        """The crop that the uniform numbers `draws` give: (left, top, width, height) in pixels."""
        (low, high), (log_low, log_high) = self.scale, self.log_ratio
        for i in range(_TRIES):
            area = image_width * image_height * (low + (high - low) * draws[2 * i])
            ratio = math.exp(log_low + (log_high - log_low) * draws[2 * i + 1])
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= image_width and 0 < height <= image_height:
                left = int(draws[2 * _TRIES] * (image_width - width + 1))
                top = int(draws[2 * _TRIES + 1] * (image_height - height + 1))
                return left, top, width, height
        width = min(image_width, round(image_height * self.ratio[1]))
        height = min(image_height, round(image_width / self.ratio[0]))
        return (image_width - width) // 2, (image_height - height) // 2, width, height


class Whole:
    """The whole image, resized if it has another size, and mirrored at random."""

    def __init__(self, size: int, flip: float, interpolation: Interpolation = "bicubic") -> None:
        self.size, self.flip, self.interpolation = size, flip, interpolation

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """One view; arguments and result as RandomCrop's."""
        view = _resize(image, self.size, self.size, self.interpolation)
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < self.flip else view


class CentreCrop:
    """The middle of an image, for evaluation: shorter side to size / 0.875, then the centred square.

    An image that has the size already is left as it is: cutting an eighth off 28 pixels would cut objects.
    """

    def __init__(self, size: int, interpolation: Interpolation = "bicubic") -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """The square, [size, size], of the image's mode."""
        if image.size == (self.size, self.size):
            return image
        side = round(self.size / _CENTRE_SHARE)
        shorter = min(image.size)
        # The longer side is rounded down, as torchvision's Resize does.
        width, height = (side if edge == shorter else edge * side // shorter for edge in image.size)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        resized = _resize(image, width, height, self.interpolation)
        return resized.crop((left, top, left + self.size, top + self.size))


def build_crops(
    specs: Sequence[ViewSpec], size: int, interpolation: Interpolation = "bicubic"
) -> list[RandomCrop | Whole]:
    """The part of each view that Pillow does.

    Args:
        specs: of the views.
        size: side of the views in pixels.
        interpolation: of every resizing.

    Returns:
        One callable per view: (image, generator) -> image.
    """
    return [
        Whole(size, spec.flip, interpolation)
        if spec.crop_scale is None
        else RandomCrop(size, spec.crop_scale, spec.crop_ratio, spec.flip, interpolation)
        for spec in specs
    ]


def _resize(
    image: Image.Image,
    width: int,
    height: int,
    interpolation: Interpolation,
    box: tuple[int, int, int, int] | None = None,
) -> Image.Image:
    if image.mode not in ("L", "RGB"):  # Pillow resizes a palette image by nearest neighbour and does not say so
        raise ValueError(f"image must be of mode 'L' or 'RGB', got {image.mode!r}")
    if image.size == (width, height) and box in (None, (0, 0, width, height)):
        return image
    return image.resize((width, height), _RESAMPLING[interpolation], box=box)
