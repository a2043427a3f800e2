"""Which images are held out, and which are left away: by `split_seed`, with every class in its share."""

from __future__ import annotations

import numpy as np

from ..config.base import ConfigError
from ..config.data import DataConfig
from ..randomness import derive
from .source import ImageSource, Subset, labels_of

_HOLD_OUT, _FEWER_TRAIN, _FEWER_TEST = range(3)


def stratified_order(labels: np.ndarray, *seed: int) -> np.ndarray:
    """A shuffled order whose beginning, of whatever length, holds every class in its share, to within one image.

    The images of each class are shuffled and laid out at equal distances over [0, 1), each class from an offset of its
    own; the order is that of the places.

    Args:
        labels: [N] classes.
        seed: see `randomness.derive`.

    Returns:
        [N] int64, each of 0 ... N - 1 once.
    """
    generator = np.random.default_rng(derive(*seed))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        place[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
    return np.argsort(place, kind="stable")


def hold_out(source: ImageSource, config: DataConfig) -> tuple[Subset, Subset]:
    """Divide a set that has no test part of its own.

    Args:
        source: all images.
        config: `test_fraction` and `split_seed`.

    Returns:
        (train, test): every image in one of them, in the order of the source.

    Raises:
        ConfigError: one of them would be empty.
    """
    count = round(config.test_fraction * len(source))
    if not 0 < count < len(source):
        raise ConfigError(
            f"data.test_fraction: leaves {count} of {len(source)} images for the test and "
            f"{len(source) - count} for training, got {config.test_fraction}"
        )
    order = stratified_order(labels_of(source), config.split_seed, _HOLD_OUT)
    return Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))


def fewer(train: ImageSource, test: ImageSource, config: DataConfig) -> tuple[ImageSource, ImageSource]:
    """At most `train_images` and `test_images` of them. A smaller number picks some of what a larger one picks."""
    return (
        _at_most(train, config.train_images, config.split_seed, _FEWER_TRAIN),
        _at_most(test, config.test_images, config.split_seed, _FEWER_TEST),
    )


def _at_most(source: ImageSource, count: int | None, *seed: int) -> ImageSource:
    if count is None or count >= len(source):
        return source
    return Subset(source, np.sort(stratified_order(labels_of(source), *seed)[:count]))
