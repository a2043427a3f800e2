"""The device part of the views: how often, how strongly, in which order, and what is left alone.

Each operation is tried alone, with the probabilities that the recipe gives it, on images that it cannot leave as they
are.
"""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from trainer.views.counting import assert_share, assert_uniform

from ldreg_kernels.trainer.config.augmentation import AugmentationConfig, StrokesConfig
from ldreg_kernels.trainer.views.device import DeviceViews
from ldreg_kernels.trainer.views.recipes import AffineSpec, ViewSpec, view_specs

RECIPES = ["simclr", "byol", "moco-v2", "mae", "grey", "strokes"]
JITTER = ("brightness", "contrast", "saturation", "hue")


def specs_of(recipe: str, **values: object) -> list[ViewSpec]:
    config = AugmentationConfig.model_validate({"recipe": recipe, **values})
    return view_specs(config, view_count=1 if recipe == "mae" else 2)


def only(spec: ViewSpec, *names: str) -> ViewSpec:
    """The spec without everything but the named fields."""
    return replace(ViewSpec(), **{name: getattr(spec, name) for name in names})


def draw(spec: ViewSpec, images: Tensor, seed: int = 0) -> Tensor:
    views = DeviceViews([spec], channels=images.shape[1], size=images.shape[-1])
    torch.manual_seed(seed)
    (result,) = views([images])
    return result


def noise(count: int, channels: int = 3, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def constant(count: int, *values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(1, -1, 1, 1).repeat(count, 1, 4, 4)


@pytest.mark.parametrize(
    ("operation", "fields", "shares"),
    [
        (
            "jitter",
            ("jitter_p", *JITTER),
            {"simclr": (0.8, 0.8), "byol": (0.8, 0.8), "moco-v2": (0.8, 0.8), "mae": (0,)},
        ),
        ("grey", ("grey_p",), {"simclr": (0.2, 0.2), "byol": (0.2, 0.2), "moco-v2": (0.2, 0.2), "mae": (0,)}),
        ("blur", ("blur_p",), {"simclr": (0.5, 0.5), "byol": (1, 0.1), "moco-v2": (0.5, 0.5), "mae": (0,)}),
        ("solarise", ("solarise_p",), {"simclr": (0, 0), "byol": (0, 0.2), "moco-v2": (0, 0), "mae": (0,)}),
    ],
)
def test_each_view_gets_each_operation_as_often_as_published(
    operation: str, fields: tuple[str, ...], shares: dict[str, tuple[float, ...]]
) -> None:
    total = 2000
    images = noise(total)
    for seed, (recipe, expected) in enumerate(shares.items()):
        # A blur of sigma 0.1 changes no bit, so the width is kept from there.
        specs = [replace(only(spec, *fields), blur_sigma=(0.5, 2.0)) for spec in specs_of(recipe)]
        views = DeviceViews(specs, channels=3, size=4)
        torch.manual_seed(seed)
        changed = [(view != images / 255).flatten(1).any(1) for view in views([images] * len(specs))]
        for mask, share in zip(changed, expected, strict=True):
            assert_share(int(mask.sum()), total, share)
        if len(changed) == 2 and min(expected) > 0 and max(expected) < 1:
            # The views of one image are drawn apart.
            assert_share(int((changed[0] & changed[1]).sum()), total, expected[0] * expected[1])


def test_grey_recipe_jitters_as_often_as_it_says_and_does_not_blur() -> None:
    (spec, _) = specs_of("grey")
    images = noise(3000, channels=1)
    changed = (draw(spec, images) != images / 255).flatten(1).any(1)
    assert_share(int(changed.sum()), 3000, 0.8)
    assert spec.blur_p == 0


def test_solarise_turns_the_upper_half_and_nothing_else() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(3, 1, 1, 1)
    x = levels / 255
    assert torch.equal(draw(ViewSpec(solarise_p=1.0), levels), torch.where(x >= 0.5, 1 - x, x))


@pytest.mark.parametrize("recipe", ["simclr", "byol"])
def test_jitter_factors_have_their_published_ranges(recipe: str) -> None:
    spec, count = replace(specs_of(recipe)[0], jitter_p=1.0), 2000

    # Brightness multiplies: a constant image keeps the factor, if it does not saturate.
    view = draw(only(spec, "jitter_p", "brightness"), constant(count, 100, 50, 10))
    factor = view[:, 0, 0, 0] / (100 / 255)
    assert_uniform(factor, 1 - spec.brightness, 1 + spec.brightness)
    expected = factor.view(-1, 1, 1, 1) * torch.tensor([100, 50, 10]).view(1, 3, 1, 1).expand(count, 3, 4, 4) / 255
    torch.testing.assert_close(view, expected)

    # Contrast stretches about the mean grey, which stays.
    halves = constant(count, 100, 100, 100)
    halves[..., :2] = 150
    view = draw(only(spec, "jitter_p", "contrast"), halves)
    assert_uniform((view[:, 0, 0, 0] - view[:, 0, 0, 3]) / (50 / 255), 1 - spec.contrast, 1 + spec.contrast, 1e-5)
    torch.testing.assert_close(view.mean((1, 2, 3)), torch.full((count,), 125 / 255))

    # Saturation stretches about the luma of the pixel, which stays.
    view = draw(only(spec, "jitter_p", "saturation"), constant(count, 120, 100, 90))
    assert_uniform((view[:, 0, 0, 0] - view[:, 2, 0, 0]) / (30 / 255), 1 - spec.saturation, 1 + spec.saturation, 1e-4)
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(view[:, :, 0, 0] @ luma, (torch.tensor([120.0, 100.0, 90.0]) / 255 @ luma).expand(count))

    # Hue turns the circle and leaves saturation and value.
    view = draw(only(spec, "jitter_p", "hue"), constant(count, 120, 180, 60))
    before = colorsys.rgb_to_hsv(120 / 255, 180 / 255, 60 / 255)
    after = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in view[:, :, 0, 0].tolist()])
    assert_uniform((after[:, 0] - before[0] + 0.5) % 1 - 0.5, -spec.hue, spec.hue, 1e-5)
    np.testing.assert_allclose(after[:, 1:], [before[1:]] * count, atol=1e-5)


def test_the_order_of_the_jitter_is_one_per_batch_and_differs_between_batches() -> None:
    """The known difference from torchvision: with the factors given, two orders give two pictures."""
    jitter = DeviceViews([replace(specs_of("simclr")[0], jitter_p=1.0)], channels=3, size=4).pipelines[0][0]
    torch.manual_seed(0)
    orders = {tuple(jitter.forward_parameters((4, 3, 8, 8))["order"].tolist()) for _ in range(200)}
    assert len(orders) == 24
    assert jitter.forward_parameters((4, 3, 8, 8))["order"].shape == (4,)  # of steps, whatever the batch


def test_blur_has_the_sigma_and_the_kernel_it_should() -> None:
    count, size = 1000, 64
    dots = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    dots[:, :, 32, 32] = 255
    view = draw(only(specs_of("byol")[0], "blur_p", "blur_sigma"), dots)
    # Two neighbours on a Gaussian: their ratio is exp(-1 / (2 sigma^2)), which is no number below sigma = 0.15.
    ratio = (view[:, 0, 32, 33] / view[:, 0, 32, 32]).double()
    wide = ratio > 1e-6
    assert_share(int(wide.sum()), count, (2.0 - (0.5 / np.log(1e6)) ** 0.5) / 1.9)
    sigma = (-0.5 / ratio[wide].log()) ** 0.5
    assert_uniform(sigma, (0.5 / np.log(1e6)) ** 0.5, 2.0, 1e-3)
    touched = view[ratio.argmax(), 0, 32] > 0
    assert int(touched.sum()) == 7  # a tenth of 64 pixels, made odd
    torch.testing.assert_close(view.sum((1, 2, 3)), torch.ones(count))


@pytest.mark.parametrize(("size", "kernel"), [(8, 3), (28, 3), (32, 3), (96, 9), (224, 23)])
def test_blur_kernel_is_a_tenth_of_the_image_and_odd(size: int, kernel: int) -> None:
    (blur,) = DeviceViews([ViewSpec(blur_p=1.0)], channels=1, size=size).pipelines[0]
    assert blur.flags["kernel_size"] == (kernel, kernel)


def test_the_order_is_jitter_grey_blur_solarise_noise() -> None:
    spec = replace(specs_of("byol")[1], blur_p=0.5, solarise_p=0.5, grey_p=0.5, noise_std=0.1)
    images = noise(64)
    whole = draw(spec, images)
    torch.manual_seed(0)
    x = images / 255
    for fields in (("jitter_p", *JITTER), ("grey_p",), ("blur_p",), ("solarise_p",), ("noise_std",)):
        x = DeviceViews([only(spec, *fields)], channels=3, size=4).pipelines[0](x)
    assert torch.equal(whole, x)


def test_one_channel_has_no_hue_saturation_or_grey() -> None:
    (spec, _) = specs_of("simclr")
    spec = replace(spec, jitter_p=1.0, grey_p=1.0, blur_p=0.0)
    view = draw(spec, constant(2000, 100))
    assert view.shape == (2000, 1, 4, 4)
    assert_uniform(view[:, 0, 0, 0] / (100 / 255), 0.2, 1.8)  # brightness; contrast leaves a constant image alone
    coloured = replace(spec, brightness=0.0, contrast=0.0)
    images = noise(16, channels=1)
    assert torch.equal(draw(coloured, images), images / 255)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_views_differ_per_image_and_call_follow_the_seed_and_stay_in_range(recipe: str, channels: int) -> None:
    specs = [replace(spec, noise_std=0.0) for spec in specs_of(recipe)]
    views = DeviceViews(specs, channels=channels, size=12)
    images = [noise(1, channels, 12).repeat(64, 1, 1, 1)] * len(specs)
    torch.manual_seed(0)
    first, second = views(images), views(images)
    torch.manual_seed(0)
    again = views(images)
    torch.manual_seed(1)
    other = views(images)
    for a, b, c, d in zip(first, second, again, other, strict=True):
        assert (a.dtype, a.shape) == (torch.float32, (64, channels, 12, 12))
        assert a.min() >= 0
        assert a.max() <= 1
        assert torch.equal(a, c)
        if recipe == "mae":
            assert torch.equal(a, images[0] / 255)  # neither jitter nor blur
        else:
            assert not torch.equal(a, b)
            assert not torch.equal(a, d)
            assert len(torch.unique(a, dim=0)) > 32
    if len(first) == 2:
        assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_is_read_back_from_the_device(recipe: str) -> None:
    """On a device whose tensors have no values, to look at one is an error. On a GPU it would be a wait."""
    specs = specs_of(recipe)
    views = DeviceViews(specs, channels=3, size=28, normalise="imagenet").to("meta")
    results = views([torch.empty(4, 3, 28, 28, dtype=torch.uint8, device="meta")] * len(specs))
    assert [result.device.type for result in results] == ["meta"] * len(specs)


def test_noise_has_its_deviation() -> None:
    residue = draw(ViewSpec(noise_std=0.05), noise(800)) - noise(800) / 255
    assert residue.std().item() == pytest.approx(0.05, rel=0.02)
    assert residue.mean().item() == pytest.approx(0, abs=0.002)


def test_handwriting_is_not_mirrored() -> None:
    """A view of an image with all its ink on the left keeps most of it there, however often one draws."""
    image = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    image[..., :2] = 255
    for spec in specs_of("strokes", strokes={"noise_std": 0.0}):
        view = draw(spec, image)
        assert (view[..., :4].sum((1, 2, 3)) > view[..., 4:].sum((1, 2, 3))).all()


def test_handwriting_has_ink_that_changes_and_paper_that_stays_outside() -> None:
    (spec, _) = specs_of("strokes")
    assert spec.ink is not None
    view = draw(only(spec, "ink"), constant(3000, 100))[:, 0, 0, 0] * 255
    # Contrast scales by 0.6 to 1.4, brightness shifts by 0.2, each with p = 0.8.
    assert_share(int((view == 100).sum()), 3000, 0.2 * 0.2)
    assert view.min() > 60 - 51 - 1e-3
    assert view.max() < 140 + 51 + 1e-3
    shifted = draw(ViewSpec(affine=AffineSpec(0.0, 0.5, (1.0, 1.0), 0.0)), constant(64, 255))
    assert shifted.min() == 0  # what comes in from outside is black


def test_no_strength_leaves_the_image_alone() -> None:
    none = StrokesConfig(degrees=0, translate=0, scale=(1, 1), shear=0, brightness=0, contrast=0, noise_std=0)
    images = noise(16, channels=1, size=8)
    for spec in specs_of("strokes", strokes=none):
        torch.testing.assert_close(draw(spec, images), images / 255, atol=1e-5, rtol=0)


def test_clean_images_are_scaled_and_normalised_as_the_views_are() -> None:
    for channels, mean, std in (
        (3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        (1, [0.449], [0.226]),
    ):
        images = noise(4, channels)
        plain = DeviceViews([ViewSpec()], channels=channels, size=4)
        assert torch.equal(plain.clean(images), images.float() / 255)
        assert torch.equal(plain([images])[0], plain.clean(images))
        normal = DeviceViews([ViewSpec()], channels=channels, size=4, normalise="imagenet")
        assert torch.equal(normal([images])[0], normal.clean(images))
        expected = (images / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        torch.testing.assert_close(normal.clean(images), expected)
        assert not normal.state_dict()  # nothing for a checkpoint to hold


def test_what_the_module_was_not_built_for_is_refused() -> None:
    views = DeviceViews([ViewSpec()] * 2, channels=3, size=4)
    with pytest.raises(ValueError, match="views must have 2 entries, got 1"):
        views([noise(2)])
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \[N, 3, H, W\], got torch.float32"):
        views.clean(noise(2).float())
    with pytest.raises(ValueError, match=r"got torch.uint8 \[2, 1, 4, 4\]"):
        views.clean(noise(2, channels=1))
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        DeviceViews([ViewSpec()], channels=2, size=4)
