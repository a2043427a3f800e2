"""What every data set is: images by number, read when asked for, and their labels."""

from __future__ import annotations

from typing import Protocol

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
