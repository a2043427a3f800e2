"""Colour patches of 32 x 32 pixels from photographs that ship inside scikit-learn and scikit-image.

Small, but real colour: hue, grey and crops mean something here. A photograph is cut into square cells, and patches lie
within cells. Whole cells are held out, so no test patch shares a pixel with a training patch. The class of a patch is
its photograph, which is easier than telling objects apart: neighbouring patches look alike.

scikit-learn alone brings two photographs; scikit-image, where it is installed, eight more. Its package is looked up,
not imported, and only files that lie inside it are read, so that nothing is fetched.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..config.base import ConfigError
from ..config.data import DataConfig
from ..randomness import derive
from .files import damaged
from .source import ArraySource, ImageData

NAME = "patches"
SIDE = 32
CELL, STRIDE = 96, 16  # 5 x 5 patches in a cell; neighbours share half of their pixels
MAX_CELLS = 24
PHOTOGRAPHS = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        (
            "astronaut.png",
            "chelsea.png",
            "coffee.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "motorcycle_left.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
}


def load(config: DataConfig) -> ImageData:
    """Patches of all photographs, cells divided by `split_seed`."""
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    paths = photographs()
    for label, path in enumerate(paths):
        cells = _cells(_read(path), derive(config.split_seed, label))
        count = round(config.test_fraction * len(cells))
        if not 0 < count < len(cells):
            raise ConfigError(
                f"data.test_fraction: leaves {count} of a photograph's {len(cells)} cells for the test, "
                f"got {config.test_fraction}"
            )
        test.append(_patches(cells[:count]))
        train.append(_patches(cells[count:]))
    return ImageData(NAME, _source(train), _source(test), len(paths), (SIDE, SIDE))


def photographs() -> list[Path]:
    """The photographs on this machine, in the order of their classes."""
    paths = []
    for package, (folder, names) in PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            place = Path(spec.origin).parent / folder
            paths += [place / name for name in names if (place / name).is_file()]
    if len(paths) < 2:
        raise ConfigError("data.dataset: patches needs the photographs of scikit-learn: pip install scikit-learn")
    return paths


def _read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise errors of every kind on damaged files
        raise damaged(NAME, path, error) from None


def _cells(photograph: np.ndarray, seed: int) -> np.ndarray:
    """Cells [n, 96, 96, 3] in random order. What is left at the edges is not used, nor more than MAX_CELLS: a large
    photograph would be most of the set.
    """
    rows, columns = photograph.shape[0] // CELL, photograph.shape[1] // CELL
    cells = photograph[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL, 3).swapaxes(1, 2)
    order = np.random.default_rng(seed).permutation(rows * columns)[:MAX_CELLS]
    return cells.reshape(-1, CELL, CELL, 3)[order]


def _patches(cells: np.ndarray) -> np.ndarray:
    """[n, 96, 96, 3] -> [25 n, 32, 32, 3]"""
    windows = np.lib.stride_tricks.sliding_window_view(cells, (SIDE, SIDE), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, SIDE, SIDE, 3)


def _source(photographs: list[np.ndarray]) -> ArraySource:
    labels = np.repeat(np.arange(len(photographs)), [len(patches) for patches in photographs])
    return ArraySource(np.concatenate(photographs), labels)
