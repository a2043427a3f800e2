"""Batches: the same with any number of workers and from any beginning, and no end of a run because of a bad file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ldreg_kernels.trainer.config.base import ConfigError
from ldreg_kernels.trainer.data import ArraySource, RawBatch, UnreadableImageError, clean_batches, training_loader
from ldreg_kernels.trainer.randomness import permutation


class Crop:
    """A random square, as a view would have it."""

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        left, top = generator.uniform(0, 4, 2)
        return image.resize((6, 6), Image.Resampling.BICUBIC, box=(left, top, left + 4, top + 4))


class Whole:
    """The image as it is."""

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        return image


class Threads:
    """An image that says how many threads torch has where it was made."""

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        return Image.new("L", (1, 1), torch.get_num_threads())


def as_it_is(image: Image.Image) -> Image.Image:
    return image


class Damaged(ArraySource):
    """A source of which some images cannot be read."""

    def __init__(self, bad: set[int], length: int = 20) -> None:
        source = _source(length)
        super().__init__(source.images, source.labels)
        self.bad = bad

    def image(self, index: int) -> Image.Image:
        if index in self.bad:
            raise UnreadableImageError(f"image{index}.png: broken")
        return super().image(index)


def _source(length: int = 20) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (length, 8, 8), dtype=np.uint8)
    images[:, 0, 0] = np.arange(length)  # every image is known by its first pixel
    return ArraySource(images, np.arange(length) % 3)


def _equal(left: list[RawBatch], right: list[RawBatch]) -> bool:
    assert len(left) == len(right) > 0
    return all(
        torch.equal(a.views[0], b.views[0]) and torch.equal(a.index, b.index) and torch.equal(a.labels, b.labels)
        for a, b in zip(left, right, strict=True)
    )


def test_an_epoch_is_the_permutation_without_the_last_smaller_batch() -> None:
    loader = training_loader(_source(), [Whole(), Crop()], batch_size=6, seed=3, workers=0)
    batches = list(loader.epoch(2))
    assert len(batches) == len(loader) == 3
    index = torch.cat([batch.index for batch in batches])
    assert index.tolist() == permutation(3, 2, 20)[:18].tolist()
    assert torch.cat([batch.labels for batch in batches]).tolist() == (index % 3).tolist()
    whole, cropped = batches[0].views
    assert (whole.shape, whole.dtype, cropped.shape) == ((6, 1, 8, 8), torch.uint8, (6, 1, 6, 6))
    assert whole[:, 0, 0, 0].tolist() == batches[0].index.tolist()


def test_views_and_epochs_are_cropped_differently() -> None:
    loader = training_loader(_source(), [Crop(), Crop()], batch_size=20, seed=0, workers=0)
    (first,), (second,) = loader.epoch(0), loader.epoch(1)
    assert not torch.equal(first.views[0], first.views[1])
    assert not torch.equal(first.views[0][first.index.argsort()], second.views[0][second.index.argsort()])


def test_workers_change_nothing_and_an_epoch_may_be_entered_in_the_middle() -> None:
    alone = training_loader(_source(), [Crop()], batch_size=4, seed=1, workers=0)
    expected = list(alone.epoch(1))
    assert _equal(list(alone.epoch(1, start=3)), expected[3:])

    helped = training_loader(_source(), [Crop(), Threads()], batch_size=4, seed=1, workers=2)
    generator = torch.get_rng_state()
    batches = list(helped.epoch(1))
    assert _equal(batches, expected)
    assert _equal(list(helped.epoch(1, start=3)), expected[3:])
    assert _equal(list(clean_batches(_source(), as_it_is, workers=1)), list(clean_batches(_source(), as_it_is)))
    left = helped.epoch(0)  # begun and never finished: what its workers have read already must not come up later
    next(left)
    assert _equal(list(helped.epoch(1)), expected)
    with pytest.raises(RuntimeError, match="epoch 0 cannot be continued"):
        next(left)
    assert all((batch.views[1] == 1).all() for batch in batches)  # one thread in each worker
    assert torch.equal(torch.get_rng_state(), generator)  # dropout and masks would depend on the number of epochs


def test_colours_come_first() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    (batch,) = clean_batches(ArraySource(images, np.zeros(4, int)), as_it_is)
    assert torch.equal(batch.views[0], torch.from_numpy(images).permute(0, 3, 1, 2))


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="batch_size: must be at most 20, the number of training images, got 21"):
        training_loader(_source(), [Crop()], batch_size=21, seed=0, workers=0)
    loader = training_loader(_source(), [Crop()], batch_size=6, seed=0, workers=0)
    with pytest.raises(ValueError, match="start: must be at least 0 and at most 3"):
        loader.epoch(0, start=4)
    with pytest.raises(ValueError, match="number: must be"):
        loader.epoch(-1)
    assert list(loader.epoch(0, start=3)) == []


def test_crops_of_different_sizes_are_refused() -> None:
    def shrinking(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        return image.resize((int(generator.integers(1, 9)), 4))

    loader = training_loader(_source(), [shrinking], batch_size=20, seed=0, workers=0)
    with pytest.raises(ValueError, match="view 0: all crops of a batch must have one size"):
        next(loader.epoch(0))


def test_the_next_readable_image_takes_the_place_of_a_bad_one() -> None:
    source = Damaged({4, 5, 19})
    (batch,) = training_loader(source, [Whole(), Crop()], batch_size=20, seed=0, workers=0).epoch(0)
    expected = [{4: 6, 5: 6, 19: 0}.get(place, place) for place in permutation(0, 0, 20).tolist()]
    assert batch.index.tolist() == expected
    assert batch.labels.tolist() == [place % 3 for place in expected]
    assert batch.views[0][:, 0, 0, 0].tolist() == expected
    # Each once, though image 5 is met twice.
    assert sorted(batch.unreadable) == ["image19.png: broken", "image4.png: broken", "image5.png: broken"]
    # Image 6 is there three times: equal rows would be neighbours at no distance.
    crops = batch.views[1][batch.index == 6]
    assert len(torch.unique(crops, dim=0)) == 3


def test_a_source_of_nothing_but_bad_images_ends_the_run() -> None:
    source = Damaged(set(range(200)), length=200)
    loader = training_loader(source, [Whole()], batch_size=2, seed=0, workers=0)
    last = (permutation(0, 0, 200)[0] + 99) % 200
    with pytest.raises(UnreadableImageError, match=f"100 images in a row could not be read, at last image{last}.png"):
        next(loader.epoch(0))


def test_clean_batches_are_all_images_in_their_order() -> None:
    batches = list(clean_batches(_source(), as_it_is, batch_size=8))
    assert [len(batch.index) for batch in batches] == [8, 8, 4]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(20))
    assert torch.cat([batch.views[0] for batch in batches])[:, 0, 0, 0].tolist() == list(range(20))


@pytest.mark.parametrize("bad", [{3}, {0, 1, 2, 3}, {18, 19}, {4, 5, 6, 7, 16, 17, 18, 19}])
def test_clean_batches_leave_bad_images_out_and_name_them(bad: set[int]) -> None:
    batches = list(clean_batches(Damaged(bad), as_it_is, batch_size=4))
    assert torch.cat([batch.index for batch in batches]).tolist() == [i for i in range(20) if i not in bad]
    assert all(len(batch.views[0]) == len(batch.index) > 0 for batch in batches)
    assert [name for batch in batches for name in batch.unreadable] == [f"image{i}.png: broken" for i in sorted(bad)]


def test_clean_batches_of_nothing_but_bad_images_name_the_last() -> None:
    with pytest.raises(UnreadableImageError, match=r"none of 20 images could be read, at last image19\.png"):
        list(clean_batches(Damaged(set(range(20))), as_it_is, batch_size=4))
