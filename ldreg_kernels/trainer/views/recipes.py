"""What makes a view: for each recipe, one ViewSpec per view, as plain data. Nothing is drawn here.

The values for photographs are those of the methods' repositories (probabilities; jitter as +- of a factor, hue in
turns):

| recipe  | crop area | flip | jitter (b, c, s, h)    | grey | blur, view 1 / 2 | solarise, view 1 / 2 |
|---------|-----------|------|------------------------|------|------------------|----------------------|
| simclr  | .08 - 1   | .5   | .8 of (.8, .8, .8, .2) | .2   | .5 / .5          | 0 / 0                |
| byol    | .08 - 1   | .5   | .8 of (.4, .4, .2, .1) | .2   | 1 / .1           | 0 / .2               |
| moco-v2 | .2 - 1    | .5   | .8 of (.4, .4, .4, .1) | .2   | .5 / .5          | 0 / 0                |
| mae     | .2 - 1    | .5   | none                   | 0    | 0                | 0                    |
| grey    | .4 - 1    | .5   | .8 of (.4, .4, 0, 0)   | 0    | 0 / 0            | 0 / 0                |

`grey` is for small grey photographs such as Fashion-MNIST's, where 8 % of 28 x 28 pixels is a patch of 8 x 8. Its
numbers are plausible, not tuned: there (SimCLR, 5,000 images, six epochs, a narrow network, one seed), crops from .08,
.2, .4 and .6, a jitter of .8 and a blur all gave a linear probe between 80.1 and 80.8 %; without jitter it was 77.5 %.

`strokes` is for handwriting, where SimCLR's recipe does not carry over, and each departure has a reason:

- no flips: handedness is part of a digit (a mirrored 2 is not a digit, a 6 upside down is a 9), so a flip
  would ask the encoder to ignore what tells classes apart;
- zoom, shift, rotation and shear come from *one* affine warp instead of crop, resize, rotate: every
  resampling blurs, and strokes of small digits are one or two pixels wide. Outside the image there is paper, so
  padding is zeros;
- no blur, for the same reason; no hue, saturation or grey, because there is one channel;
- brightness, contrast and a little noise: without them, the total amount of ink would identify an image, the
  shortcut that colour jitter closes on photographs.

A method with one view (MAE) compares nothing, so there is no shortcut to close: of `grey` and `strokes` it gets the
geometry alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # config/run.py asks this file for the recipe, so at run time the import goes that way only
    from ..config.augmentation import AugmentationConfig

Range = tuple[float, float]

_BY_METHOD = {"simclr": "simclr", "byol": "byol", "mae": "mae"}
_HANDWRITING = ("digits", "mnist5k")


@dataclass(frozen=True)
class AffineSpec:
    """One warp about the centre of the image; every image is warped."""

    degrees: float  # rotation, +-
    translate: float  # shift of each axis, +- fraction of the side
    scale: Range  # zoom
    shear: float  # degrees, +-


@dataclass(frozen=True)
class InkSpec:
    """Changes of dark paper with bright ink: contrast scales the values (paper stays black), brightness shifts them."""

    contrast: float  # +- of the factor
    brightness: float  # +-
    p: float = 0.8  # of each, apart


@dataclass(frozen=True)
class ViewSpec:
    """How one view is drawn, in the order of the fields; the defaults leave the image alone.

    Probabilities are per image. `brightness`, `contrast` and `saturation` are multiplicative as in torchvision's
    ColorJitter: a factor uniform in [max(0, 1 - v), 1 + v]. (DeepMind's BYOL adds its brightness instead, a uniform
    shift in [-v, v]; the PyTorch repositories do not, and neither does this one.)
    """

    crop_scale: Range | None = None  # area of the crop, as a fraction of the image's; None: the whole image
    crop_ratio: Range = (3 / 4, 4 / 3)  # width / height, log-uniform
    flip: float = 0.0
    affine: AffineSpec | None = None
    jitter_p: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # turns, at most 0.5
    grey_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: Range = (0.1, 2.0)  # pixels
    solarise_p: float = 0.0  # x -> 1 - x where x >= 0.5
    ink: InkSpec | None = None
    noise_std: float = 0.0


_SIMCLR = ViewSpec(
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter_p=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    grey_p=0.2,
    blur_p=0.5,
)
_BYOL = replace(_SIMCLR, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
_MOCO = replace(_SIMCLR, crop_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
_MAE = ViewSpec(crop_scale=(0.2, 1.0), flip=0.5)
_GREY = ViewSpec(crop_scale=(0.4, 1.0), flip=0.5, jitter_p=0.8, brightness=0.4, contrast=0.4)

# One entry per view; the last one also serves all further views.
_PHOTOGRAPHS = {
    "simclr": (_SIMCLR,),
    "byol": (replace(_BYOL, blur_p=1.0), replace(_BYOL, blur_p=0.1, solarise_p=0.2)),
    "moco-v2": (_MOCO,),
    "mae": (_MAE,),
    "grey": (_GREY,),
}


def recipe_for(method: str, channels: int, dataset: str) -> str:
    """The recipe that "auto" stands for.

    Args:
        method: its name in the configuration.
        channels: of the images, 1 or 3.
        dataset: its name in the configuration.

    Returns:
        "strokes" for handwriting, "grey" for other images of one channel, else the method's own.

    Raises:
        ValueError: `channels` is neither 1 nor 3, or the method has no recipe.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if method not in _BY_METHOD:
        raise ValueError(f"method must be one of {', '.join(_BY_METHOD)} for recipe 'auto', got {method!r}")
    if dataset in _HANDWRITING:
        return "strokes"
    return "grey" if channels == 1 else _BY_METHOD[method]


def view_specs(config: AugmentationConfig, *, view_count: int) -> list[ViewSpec]:
    """The views of a recipe, with the configuration's changes laid over each.

    Args:
        config: with a recipe other than "auto".
        view_count: how many views the method takes.

    Returns:
        `view_count` specs.

    Raises:
        ValueError: the recipe is "auto", or a setting means nothing to it; the message names the setting.
    """
    if view_count < 1:
        raise ValueError(f"view_count must be at least 1, got {view_count}")
    if config.recipe == "auto":
        raise ValueError("augmentation.recipe must have been resolved by recipe_for, got 'auto'")
    if config.recipe == "strokes":
        return [_strokes(config, geometry_only=view_count == 1)] * view_count
    views = _PHOTOGRAPHS[config.recipe]
    if config.recipe == "grey" and view_count == 1:
        views = (replace(_GREY, jitter_p=0.0, brightness=0.0, contrast=0.0),)
    return [_adjusted(views[min(view, len(views) - 1)], config) for view in range(view_count)]


def _strokes(config: AugmentationConfig, geometry_only: bool) -> ViewSpec:
    for name, instead in (
        ("crop_scale", "set augmentation.strokes.scale"),
        ("jitter_strength", "set augmentation.strokes.brightness and .contrast"),
        ("noise_std", "set augmentation.strokes.noise_std"),
        ("blur", "choose another recipe"),
        ("flip", "choose another recipe"),
    ):
        value = getattr(config, name)
        nothing = name in ("blur", "flip") and not value  # says what the recipe does anyway
        if value is not None and not nothing:
            raise ValueError(f"augmentation.{name} does not go with the recipe 'strokes': {instead}; got {value!r}")
    s = config.strokes
    warp = ViewSpec(affine=AffineSpec(s.degrees, s.translate, s.scale, s.shear))
    return warp if geometry_only else replace(warp, ink=InkSpec(s.contrast, s.brightness), noise_std=s.noise_std)


def _adjusted(spec: ViewSpec, config: AugmentationConfig) -> ViewSpec:
    changes: dict[str, object] = {}
    if config.crop_scale is not None:
        changes["crop_scale"] = config.crop_scale
    if config.flip is not None:
        changes["flip"] = config.flip
    if config.noise_std is not None:
        changes["noise_std"] = config.noise_std
    if config.blur is not None:
        changes["blur_p"] = (spec.blur_p or 0.5) if config.blur else 0.0
    if config.jitter_strength is not None:
        if not spec.jitter_p:
            raise ValueError(
                "augmentation.jitter_strength does not go with the recipe "
                f"{config.recipe!r}, whose views (with this method) have no jitter; got {config.jitter_strength}"
            )
        for name in ("brightness", "contrast", "saturation", "hue"):
            changes[name] = getattr(spec, name) * config.jitter_strength
    return replace(spec, **changes)  # type: ignore[arg-type]
