"""scikit-learn's handwritten digits, which ship inside the library.

1797 grey images of 8 x 8 pixels in ten classes (UCI ML hand-written digits, test part). Small enough for tests.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from ..config.data import DataConfig
from .source import ArraySource, ImageData
from .split import hold_out


def load(config: DataConfig) -> ImageData:
    """The digits, divided by `split_seed`."""
    digits = load_digits()
    # 17 grey levels, 0 ... 16, over the whole range of a byte: 255 / 16 = 15.94 per level.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    train, test = hold_out(ArraySource(images, digits.target), config)
    return ImageData("digits", train, test, classes=10, image_size=(8, 8))
