"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 60,000 + 10,000 grey images of 28 x 28 pixels in ten classes.

Read from the four published IDX files, as Debian's package `dataset-fashion-mnist` brings them. An IDX file is
big-endian: two zero bytes, 8 for unsigned bytes, the number of axes, the length of each in four bytes, the values.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ..config.base import ConfigError
from ..config.data import DataConfig
from .files import damaged, folders, missing
from .source import ArraySource, ImageData

NAME = "fashion-mnist"
SIDE, CLASSES = 28, 10
PARTS = {"train": "train", "test": "t10k"}


def load(config: DataConfig) -> ImageData:
    """The published training and test part."""
    places = folders(NAME, config.root)
    for place in places:
        if any(path.is_file() for part in PARTS for path in _files(place, part)):
            train, test = (_read_part(place, part) for part in PARTS)
            return ImageData(NAME, train, test, CLASSES, (SIDE, SIDE))
    raise missing(NAME, places)


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped IDX file of unsigned bytes.

    Args:
        path: of the file.

    Returns:
        uint8, of the shape that the header gives.

    Raises:
        ConfigError: the file is missing, is not gzip, not IDX, or not as long as its header says; the message names it.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise damaged(NAME, path, "this file is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(NAME, path, f"cannot be unpacked ({error})") from None
    axes = content[3] if len(content) > 3 else 0
    begin = 4 + 4 * axes
    if content[:3] != b"\0\0\x08" or not axes or len(content) < begin:
        raise damaged(NAME, path, f"is not an IDX file of unsigned bytes, it begins with {content[:4]!r}")
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, begin, 4))
    if len(content) - begin != math.prod(shape):
        raise damaged(NAME, path, f"must hold {list(shape)} values, got {len(content) - begin} bytes")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def _files(place: Path, part: str) -> tuple[Path, Path]:
    prefix = PARTS[part]
    return place / f"{prefix}-images-idx3-ubyte.gz", place / f"{prefix}-labels-idx1-ubyte.gz"


def _read_part(place: Path, part: str) -> ArraySource:
    images_path, labels_path = _files(place, part)
    images, labels = read_idx(images_path), read_idx(labels_path)
    problem: ConfigError | None = None
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or not len(images):
        problem = damaged(NAME, images_path, f"must hold images of {SIDE} x {SIDE} pixels, got {list(images.shape)}")
    elif labels.shape != images.shape[:1]:
        problem = damaged(NAME, labels_path, f"must hold {len(images)} labels, got {list(labels.shape)}")
    elif labels.max() >= CLASSES:
        problem = damaged(NAME, labels_path, f"labels must be below {CLASSES}, got {labels.max()}")
    if problem:
        raise problem
    return ArraySource(images, labels)
