"""Recipes: the published numbers, what a configuration changes about them, and what it may not."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ldreg_kernels.trainer.config.augmentation import AugmentationConfig
from ldreg_kernels.trainer.views.recipes import ViewSpec, recipe_for, view_specs

SIZED = {"simclr": (0.08, 1.0), "byol": (0.08, 1.0), "moco-v2": (0.2, 1.0), "mae": (0.2, 1.0)}
JITTER = {"simclr": (0.8, 0.8, 0.8, 0.2), "byol": (0.4, 0.4, 0.2, 0.1), "moco-v2": (0.4, 0.4, 0.4, 0.1)}
BLUR = {"simclr": [0.5, 0.5], "byol": [1.0, 0.1], "moco-v2": [0.5, 0.5]}
SOLARISE = {"simclr": [0.0, 0.0], "byol": [0.0, 0.2], "moco-v2": [0.0, 0.0]}


def jitter(spec: ViewSpec) -> tuple[float, ...]:
    return spec.brightness, spec.contrast, spec.saturation, spec.hue


@pytest.mark.parametrize("recipe", ["simclr", "byol", "moco-v2"])
def test_recipe_has_the_published_numbers(recipe: str) -> None:
    specs = view_specs(AugmentationConfig(recipe=recipe), view_count=2)
    assert [spec.blur_p for spec in specs] == BLUR[recipe]
    assert [spec.solarise_p for spec in specs] == SOLARISE[recipe]
    for spec in specs:
        assert jitter(spec) == JITTER[recipe]
        assert (spec.crop_scale, spec.crop_ratio) == (SIZED[recipe], (3 / 4, 4 / 3))
        assert (spec.flip, spec.jitter_p, spec.grey_p, spec.blur_sigma) == (0.5, 0.8, 0.2, (0.1, 2.0))
        assert spec.affine is None
        assert spec.ink is None
        assert spec.noise_std == 0


def test_mae_has_one_view_that_is_crop_and_flip_alone() -> None:
    assert view_specs(AugmentationConfig(recipe="mae"), view_count=1) == [ViewSpec(crop_scale=(0.2, 1.0), flip=0.5)]


def test_one_view_of_grey_or_strokes_is_geometry_alone() -> None:
    (grey,) = view_specs(AugmentationConfig(recipe="grey"), view_count=1)
    two_grey = view_specs(AugmentationConfig(recipe="grey"), view_count=2)[0]
    assert two_grey.jitter_p > 0
    assert grey == ViewSpec(crop_scale=two_grey.crop_scale, flip=0.5)
    (strokes,) = view_specs(AugmentationConfig(recipe="strokes"), view_count=1)
    two_strokes = view_specs(AugmentationConfig(recipe="strokes"), view_count=2)[0]
    assert two_strokes.ink is not None
    assert strokes == ViewSpec(affine=two_strokes.affine)


def test_changes_lie_over_every_view() -> None:
    cifar = AugmentationConfig(recipe="byol", jitter_strength=0.5, blur=False, crop_scale=(0.3, 0.9), flip=0.0)
    for spec in view_specs(cifar, view_count=2):
        assert jitter(spec) == pytest.approx((0.2, 0.2, 0.1, 0.05))
        assert (spec.blur_p, spec.crop_scale, spec.flip) == (0.0, (0.3, 0.9), 0.0)
    # Blur that a recipe has keeps its probabilities, and one that has none gets 0.5.
    assert [s.blur_p for s in view_specs(AugmentationConfig(recipe="byol", blur=True), view_count=2)] == [1.0, 0.1]
    grey = AugmentationConfig(recipe="grey", blur=True, noise_std=0.1)
    assert [(s.blur_p, s.noise_std) for s in view_specs(grey, view_count=2)] == [(0.5, 0.1)] * 2


def test_more_views_repeat_the_last() -> None:
    specs = view_specs(AugmentationConfig(recipe="byol"), view_count=4)
    assert [spec.solarise_p for spec in specs] == [0.0, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        (("simclr", 1, "digits"), "strokes"),
        (("mae", 1, "mnist5k"), "strokes"),
        (("byol", 1, "fashion_mnist"), "grey"),
        (("mae", 1, "folder"), "grey"),
        (("mae", 3, "cifar10"), "mae"),
        (("byol", 3, "patches"), "byol"),
        (("simclr", 3, "folder"), "simclr"),
    ],
)
def test_auto_chooses_by_method_and_data_set(arguments: tuple[str, int, str], recipe: str) -> None:
    assert recipe_for(*arguments) == recipe


def test_auto_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"method must be one of simclr, byol, mae .* got 'dino'"):
        recipe_for("dino", 3, "cifar10")
    with pytest.raises(ValueError, match=r"channels must be 1 or 3, got 4"):
        recipe_for("simclr", 4, "folder")
    with pytest.raises(ValueError, match=r"augmentation\.recipe must have been resolved"):
        view_specs(AugmentationConfig(), view_count=2)
    with pytest.raises(ValueError, match=r"view_count must be at least 1, got 0"):
        view_specs(AugmentationConfig(recipe="mae"), view_count=0)


@pytest.mark.parametrize(
    ("values", "view_count", "message"),
    [
        (
            {"recipe": "strokes", "crop_scale": (0.2, 1.0)},
            2,
            r"crop_scale .*'strokes': set augmentation\.strokes\.scale",
        ),
        (
            {"recipe": "strokes", "jitter_strength": 0.0},
            2,
            r"jitter_strength .* augmentation\.strokes\.brightness .*; got 0\.0",
        ),
        ({"recipe": "strokes", "noise_std": 0.0}, 2, r"noise_std .* augmentation\.strokes\.noise_std; got 0\.0"),
        ({"recipe": "strokes", "blur": True}, 2, r"augmentation\.blur .* another recipe; got True"),
        ({"recipe": "strokes", "flip": 0.5}, 2, r"augmentation\.flip .* another recipe; got 0\.5"),
        ({"recipe": "mae", "jitter_strength": 0.5}, 1, r"jitter_strength .* 'mae', whose views .* no jitter; got 0\.5"),
        (
            {"recipe": "grey", "jitter_strength": 0.5},
            1,
            r"jitter_strength .* 'grey', whose views .* no jitter; got 0\.5",
        ),
    ],
)
def test_settings_that_mean_nothing_to_the_recipe_are_refused(
    values: dict[str, object], view_count: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        view_specs(AugmentationConfig.model_validate(values), view_count=view_count)


def test_strokes_may_say_what_they_do_anyway() -> None:
    plain = view_specs(AugmentationConfig(recipe="strokes"), view_count=2)
    assert view_specs(AugmentationConfig(recipe="strokes", blur=False, flip=0.0), view_count=2) == plain


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "dino"}, r"recipe\n.*'auto', 'simclr', 'byol', 'moco-v2', 'mae', 'grey' or 'strokes'"),
        ({"crop_scale": (0.9, 0.2)}, r"crop_scale\n.*must be 0 < low <= high <= 1, got \[0\.9, 0\.2\]"),
        ({"crop_scale": (0.0, 0.2)}, r"crop_scale\n.*must be 0 < low"),
        ({"crop_scale": (0.5, 1.5)}, r"crop_scale\n.*<= 1, got"),
        ({"jitter_strength": -1}, r"jitter_strength\n.*greater than or equal to 0"),
        ({"jitter_strength": 3}, r"jitter_strength\n.*less than or equal to 2"),
        ({"flip": 1.5}, r"flip\n.*less than or equal to 1"),
        ({"noise_std": float("nan")}, r"noise_std\n"),
        ({"image_size": 2}, r"image_size\n.*greater than or equal to 4"),
        ({"interpolation": "nearest"}, r"interpolation\n.*'bicubic' or 'bilinear'"),
        ({"normalise": True}, r"normalise\n.*'none' or 'imagenet'"),
        ({"strokes": {"scale": (1.3, 0.8)}}, r"strokes\.scale\n.*must be 0 < low <= high, got \[1\.3, 0\.8\]"),
        ({"strokes": {"degree": 10}}, r"strokes\.degree\n"),
        ({"degrees": 10, "shear": 1}, r"degrees is now augmentation\.strokes\.degrees; the setting shear is now"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentationConfig.model_validate(values)
