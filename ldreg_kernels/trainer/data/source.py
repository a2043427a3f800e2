"""What every data set is: images by number, read when asked for, and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


class UnreadableImageError(OSError):
    """One image could not be decoded; the message names the file. A run counts it and goes on."""


class ImageSource(Protocol):
    """Images by number. Anything with these four members can be trained on.

    Attributes:
        channels: 1 (images of mode "L") or 3 ("RGB").
    """

    channels: int

    def __len__(self) -> int:
        """How many images there are."""

    def image(self, index: int) -> Image.Image:
        """One image, of mode "L" or "RGB".

        Args:
            index: 0 <= index < len.

        Returns:
            The image.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """

    def label(self, index: int) -> int:
        """Its class, from 0; known without reading the image."""


class ArraySource:
    """Images of one size, whole in memory.

    Args:
        images: [N, H, W] (grey) or [N, H, W, 3] (colour) uint8.
        labels: [N] integers, from 0.

    Raises:
        ValueError: another type or shape.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise ValueError(
                f"images: must be uint8 [N, H, W] or [N, H, W, 3], got {images.dtype} {list(images.shape)}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels: must be integers [{len(images)}], one per image, got {labels.dtype} {list(labels.shape)}"
            )
        self.images = images
        self.labels = labels.astype(np.int64)
        self.channels = 1 if images.ndim == 3 else 3

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.images.shape[1], self.images.shape[2]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """One image."""
        return Image.fromarray(self.images[index])

    def label(self, index: int) -> int:
        """Its class."""
        return int(self.labels[index])


class Subset:
    """Some images of a source, numbered anew.

    Args:
        source: all images.
        indices: [M] places in `source`; the n-th image of the subset is image indices[n].

    Raises:
        IndexError: a place outside of `source`.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        self.indices = np.asarray(indices, dtype=np.int64)
        outside = self.indices[(self.indices < 0) | (self.indices >= len(source))]
        if len(outside):
            raise IndexError(f"indices: must be at least 0 and below {len(source)}, got {outside[0]}")
        self.source = source
        self.channels = source.channels

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.indices)

    def image(self, index: int) -> Image.Image:
        """One image."""
        return self.source.image(int(self.indices[index]))

    def label(self, index: int) -> int:
        """Its class."""
        return self.source.label(int(self.indices[index]))


def labels_of(source: ImageSource) -> np.ndarray:
    """[N] int64, the classes of all images."""
    return np.fromiter((source.label(i) for i in range(len(source))), dtype=np.int64, count=len(source))


@dataclass(frozen=True)
class ImageData:
    """A data set, divided.

    Attributes:
        name: as in the configuration.
        train: what is trained on.
        test: what is held out.
        classes: number of classes; labels are below it.
        image_size: (height, width) of every image, or None where they may differ.
    """

    name: str
    train: ImageSource
    test: ImageSource
    classes: int
    image_size: tuple[int, int] | None

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.train.channels
