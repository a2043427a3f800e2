"""Crops: torchvision's distribution of rectangles, one antialiased resampling, mirrors by count, nothing shared."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image
from trainer.views.counting import assert_share, assert_uniform

from ldreg_kernels.trainer.config.augmentation import AugmentationConfig
from ldreg_kernels.trainer.views.crop import CentreCrop, RandomCrop, Whole, build_crops
from ldreg_kernels.trainer.views.recipes import view_specs

RATIO = (3 / 4, 4 / 3)


def picture(width: int, height: int, mode: str = "L") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode=mode)


def rectangles(crop: RandomCrop, width: int, height: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(1)
    return np.array([crop.rectangle(width, height, generator.random(23).tolist()) for _ in range(count)])


def test_area_ratio_and_place_are_uniform() -> None:
    # Every rectangle of at most half the area fits into a square, so nothing is drawn again.
    left, top, width, height = rectangles(RandomCrop(8, (0.1, 0.5), RATIO, 0.0), 2000, 2000, 3000).T
    assert_uniform(width * height / 2000**2, 0.1, 0.5, slack=1e-3)
    assert_uniform(np.log(width / height), np.log(3 / 4), np.log(4 / 3), slack=2e-3)
    across, down = left / (2000 - width), top / (2000 - height)
    assert_uniform(across, 0, 1)
    assert_uniform(down, 0, 1)
    correlation = np.corrcoef([width * height, width / height, across, down])
    assert np.abs(correlation - np.eye(4)).max() < 5 / 3000**0.5  # five standard deviations


@pytest.mark.parametrize("size", [(28, 28), (40, 24), (24, 40)])
def test_rectangles_of_small_images_fit_and_keep_their_range(size: tuple[int, int]) -> None:
    left, top, width, height = rectangles(RandomCrop(8, (0.08, 1.0), RATIO, 0.0), *size, 1000).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= size[0]).all()
    assert (top + height <= size[1]).all()
    # A side is rounded to whole pixels.
    assert ((width + 0.5) * (height + 0.5) >= 0.08 * size[0] * size[1]).all()
    assert ((width + 0.5) / (height - 0.5) >= 3 / 4).all()
    assert ((width - 0.5) / (height + 0.5) <= 4 / 3).all()
    share = width * height / (size[0] * size[1])
    assert share.min() < 0.12
    assert share.max() > (0.9 if size[0] == size[1] else 0.7)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10)), ((30, 30), (0, 0, 30, 30))],
)
def test_after_ten_tries_it_is_the_largest_centred_rectangle(
    size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    # An area above the image's never fits.
    assert RandomCrop(8, (1.5, 2.0), RATIO, 0.0).rectangle(*size, [0.5] * 23) == expected


@pytest.mark.parametrize("recipe", ["simclr", "byol", "moco-v2", "mae", "grey", "strokes"])
def test_half_of_each_view_is_mirrored_and_no_handwriting_is(recipe: str) -> None:
    # Ink on the left: a crop that keeps some of it keeps it on that side.
    array = np.zeros((16, 16), dtype=np.uint8)
    array[:, :1] = 255
    image, total = Image.fromarray(array), 2000
    for crop in build_crops(view_specs(AugmentationConfig(recipe=recipe), view_count=2), 16):
        if isinstance(crop, RandomCrop):
            crop = RandomCrop(16, (0.9, 1.0), (1.0, 1.0), crop.flip)
            crop.rectangle = lambda *_: (0, 0, 15, 15)  # type: ignore[method-assign]
        generator = np.random.default_rng(2)
        views = [np.asarray(crop(image, generator)) for _ in range(total)]
        mirrored = sum(bool(view[8, -1] > view[8, 0]) for view in views)
        assert_share(mirrored, total, 0.0 if recipe == "strokes" else 0.5)


def test_crops_are_antialiased() -> None:
    """Black and white lines of one pixel shrink to grey; without antialiasing they would stay black or white."""
    lines = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32)))
    for interpolation in ("bicubic", "bilinear"):
        for crop in (RandomCrop(8, (0.9, 1.0), RATIO, 0.0, interpolation), Whole(8, 0.0, interpolation)):
            view = np.asarray(crop(lines, np.random.default_rng(0)))
            assert view.shape == (8, 8)
            assert 100 < view.min() <= view.max() < 155
        centre = np.asarray(CentreCrop(8, interpolation)(lines))
        assert 100 < centre.min() <= centre.max() < 155


def test_interpolation_is_the_one_asked_for() -> None:
    image = picture(20, 20)
    whole = {
        name: np.asarray(Whole(28, 0.0, name)(image, np.random.default_rng(0))) for name in ("bicubic", "bilinear")
    }
    assert np.array_equal(whole["bicubic"], np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)))
    assert np.array_equal(whole["bilinear"], np.asarray(image.resize((28, 28), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_crop_follows_its_generator_and_keeps_the_mode(mode: str) -> None:
    image = picture(28, 28, mode)
    (crop, _) = build_crops(view_specs(AugmentationConfig(recipe="simclr"), view_count=2), 28)
    again = pickle.loads(pickle.dumps(crop))
    first = crop(image, np.random.default_rng([3, 0, 7]))
    assert (first.mode, first.size) == (mode, (28, 28))
    assert first.tobytes() == again(image, np.random.default_rng([3, 0, 7])).tobytes()
    assert first.tobytes() != crop(image, np.random.default_rng([3, 1, 7])).tobytes()  # another epoch
    assert first.tobytes() != crop(image, np.random.default_rng([3, 0, 8])).tobytes()  # another image
    generator = np.random.default_rng([3, 0, 7])
    assert crop(image, generator).tobytes() != crop(image, generator).tobytes()  # another view


def test_a_crop_takes_the_same_number_of_draws_from_any_image() -> None:
    states = []
    for image in (picture(28, 28), picture(400, 10), picture(5, 6, "RGB")):
        generator = np.random.default_rng(0)
        RandomCrop(28, (0.08, 1.0), RATIO, 0.5)(image, generator)
        states.append(generator.bit_generator.state["state"])
    assert states[0] == states[1] == states[2]


def test_whole_leaves_an_image_of_the_size_alone() -> None:
    image = picture(28, 28)
    assert Whole(28, 0.0)(image, np.random.default_rng(0)) is image
    assert Whole(14, 0.0)(image, np.random.default_rng(0)).size == (14, 14)


def test_centre_crop() -> None:
    image = picture(28, 28)
    assert CentreCrop(28)(image) is image
    for width, height in ((100, 201), (201, 100), (12, 20), (32, 32)):
        wide = picture(width, height, "RGB")
        short = min(width, height)
        resized = wide.resize((32 * width // short, 32 * height // short), Image.Resampling.BICUBIC)
        left, top = round((resized.width - 28) / 2), round((resized.height - 28) / 2)
        expected = resized.crop((left, top, left + 28, top + 28))
        view = CentreCrop(28)(wide)
        assert view.size == (28, 28)
        assert view.tobytes() == expected.tobytes()


def test_a_palette_image_is_refused() -> None:
    image = picture(20, 20).convert("P")
    for crop in (RandomCrop(8, (0.2, 1.0), RATIO, 0.5), Whole(8, 0.5)):
        with pytest.raises(ValueError, match="image must be of mode 'L' or 'RGB', got 'P'"):
            crop(image, np.random.default_rng(0))
    with pytest.raises(ValueError, match="got 'P'"):
        CentreCrop(8)(image)
