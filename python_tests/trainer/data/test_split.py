"""Which images are trained on and which are held out."""

from __future__ import annotations

import numpy as np
import pytest

from ldreg_kernels.trainer.config.base import ConfigError
from ldreg_kernels.trainer.config.data import DataConfig
from ldreg_kernels.trainer.data import ArraySource, Subset, labels_of, load_data
from ldreg_kernels.trainer.data.split import hold_out, stratified_order


def _source(labels: np.ndarray) -> ArraySource:
    images = np.zeros((len(labels), 2, 2), np.uint8)
    images[:, 0, 0] = np.arange(len(labels))  # every image is known by its first pixel
    return ArraySource(images, labels)


def _names(source: Subset) -> list[int]:
    return [source.image(i).getpixel((0, 0)) for i in range(len(source))]


LABELS = np.random.default_rng(0).choice(3, 200, p=[0.7, 0.25, 0.05])


def test_every_image_is_in_one_part_and_has_its_label() -> None:
    train, test = hold_out(_source(LABELS), DataConfig(test_fraction=0.3))
    assert len(test) == 60
    assert sorted(_names(train) + _names(test)) == list(range(200))
    assert [train.label(i) for i in range(len(train))] == LABELS[_names(train)].tolist()


def test_every_beginning_of_the_order_holds_the_classes_in_their_shares() -> None:
    order = stratified_order(LABELS, 4)
    for count in (1, 10, 37, 100, 199, 200):
        shares = np.bincount(LABELS, minlength=3) * count / 200
        assert (np.abs(np.bincount(LABELS[order[:count]], minlength=3) - shares) <= 1).all()


def test_split_seed_alone_decides() -> None:
    digits = load_data(DataConfig())
    again = load_data(DataConfig(workers=3))
    other = load_data(DataConfig(split_seed=1))
    assert _pixels(digits.test) == _pixels(again.test)
    assert _pixels(digits.test) != _pixels(other.test)


def _pixels(source: Subset) -> list[bytes]:
    return [source.image(i).tobytes() for i in range(len(source))]


def test_fewer_images_keep_the_shares_and_a_smaller_number_picks_some_of_a_larger() -> None:
    few = load_data(DataConfig(train_images=100, test_images=50))
    more = load_data(DataConfig(train_images=200))
    assert (len(few.train), len(few.test)) == (100, 50)
    assert np.bincount(labels_of(few.train)).min() >= 8  # ten classes of nearly equal size
    assert set(few.train.indices) < set(more.train.indices)
    assert len(load_data(DataConfig(train_images=5000)).train) == 1348  # "at most"


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_an_empty_part_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.test_fraction: leaves"):
        hold_out(_source(LABELS), DataConfig(test_fraction=fraction))


def test_sources_check_what_they_are_given() -> None:
    with pytest.raises(ValueError, match="images: must be uint8"):
        ArraySource(np.zeros((2, 3, 3)), np.zeros(2, int))
    with pytest.raises(ValueError, match="images: must be uint8"):
        ArraySource(np.zeros((2, 3, 3, 4), np.uint8), np.zeros(2, int))
    with pytest.raises(ValueError, match="labels: must be integers"):
        ArraySource(np.zeros((2, 3, 3), np.uint8), np.zeros(3, int))
    with pytest.raises(IndexError, match="below 200, got 200"):
        Subset(_source(LABELS), [3, 200])
