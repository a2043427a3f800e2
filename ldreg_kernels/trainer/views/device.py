"""Random views of 8 x 8 digits, as one batched kornia pipeline that runs on the device of the images.

SimCLR's ImageNet recipe (crop, flip, colour jitter, grey, blur) does not carry over, and each departure has a
reason:

- no flips: handedness is part of a digit (a mirrored 2 is not a digit, a 6 upside down is a 9), so a flip
  would ask the encoder to ignore what tells classes apart;
- zoom, shift, rotation and shear come from *one* affine warp instead of crop, resize, rotate: every
  resampling blurs, and strokes here are one or two pixels wide. Outside the image there is paper, so padding
  is zeros;
- no blur, for the same reason; no hue, saturation or grey, because there is one channel;
- brightness, contrast and a little noise: without them, the total amount of ink would identify an image, the
  shortcut that colour jitter closes on photographs.
"""

from __future__ import annotations

import kornia.augmentation as K

from .config import AugmentationConfig


def build_augmentation(config: AugmentationConfig) -> K.AugmentationSequential:
    """A module that draws one random view per image: [N, 1, H, W] in [0, 1] -> the same shape, in [0, 1] plus
    noise.

    Every image gets its own parameters, drawn from torch's global generator, so a seed fixes the views.

    Args:
        config: strengths.

    Returns:
        The pipeline; call it once per view.
    """
    c = config
    return K.AugmentationSequential(
        K.RandomAffine(c.degrees, (c.translate, c.translate), c.scale, c.shear, p=1.0),
        K.RandomContrast((1 - c.contrast, 1 + c.contrast), p=0.8),
        K.RandomBrightness((1 - c.brightness, 1 + c.brightness), p=0.8),
        K.RandomGaussianNoise(std=c.noise_std, p=1.0),
        data_keys=["input"],
    )
