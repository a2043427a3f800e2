"""What happens to a batch on the device of the images: colours, blur, warps and noise with kornia, then normalisation.

The order is torchvision's in the methods' repositories: jitter, grey, blur, solarise; for handwriting: warp, contrast,
brightness, noise. Everything is drawn per image from torch's global generator, so a seed fixes the views. It is drawn
on the CPU, noise included, wherever the images are, so a device changes rounding only. With one exception nothing is
shared in a batch: the order of the jitter's four steps is drawn once per batch (torchvision draws it per image).

An operation with p < 1 computes the whole batch and selects with `where`: no masks are indexed. No value is read back
from the device (seen in kornia 0.9 with tensors that have none; not measured on a GPU). Results are clamped to [0, 1]
after every step but the noise. One channel has no hue, saturation or grey: these are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from .recipes import ViewSpec

if TYPE_CHECKING:
    from ..config.augmentation import Normalise

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class DeviceViews(nn.Module):
    """Views as the workers cut them, uint8, to views as an encoder takes them, float32.

    Args:
        specs: one per view.
        channels: 1 or 3.
        size: side of the views in pixels; the blur's kernel is a tenth of it.
        normalise: "imagenet" subtracts ImageNet's mean and divides by its deviation, per channel; with one channel, the
            mean over the three. "none" leaves [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        specs: Sequence[ViewSpec],
        *,
        channels: int,
        size: int,
        normalise: Normalise = "none",
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        self.channels = channels
        # A plain list: as submodules, kornia's generators would follow `.to(device)` and draw there: other numbers than
        # on a CPU, and kornia looks at them before a jitter's steps and a blur, which would wait for the device.
        self.pipelines = [_pipeline(spec, channels, size) for spec in specs]
        self.normalise = normalise
        mean, std = torch.tensor(_IMAGENET_MEAN), torch.tensor(_IMAGENET_STD)
        if channels == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Draw the device part of every view.

        Args:
            views: one uint8 [N, C, H, W] per spec.

        Returns:
            One float32 [N, C, H, W] per view.

        Raises:
            ValueError: the number of views, the dtype or the channels are not what the module was built for.
        """
        if len(views) != len(self.pipelines):
            raise ValueError(f"views must have {len(self.pipelines)} entries, got {len(views)}")
        return [
            self._normalised(pipeline(self._scaled(view))) for pipeline, view in zip(self.pipelines, views, strict=True)
        ]

    @torch.no_grad()
    def clean(self, images: Tensor) -> Tensor:
        """Images for evaluation: the same scale and normalisation, nothing drawn.

        Args:
            images: uint8 [N, C, H, W].

        Returns:
            float32 [N, C, H, W].

        Raises:
            ValueError: as `forward`.
        """
        return self._normalised(self._scaled(images))

    def _scaled(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"images must be uint8 of shape [N, {self.channels}, H, W], got {images.dtype} {list(images.shape)}"
            )
        return images.float() / 255

    def _normalised(self, images: Tensor) -> Tensor:
        return images if self.normalise == "none" else (images - self.mean) / self.std


def _pipeline(spec: ViewSpec, channels: int, size: int) -> nn.Sequential:
    colour = channels == 3
    steps: list[nn.Module] = []
    if spec.affine is not None:
        a = spec.affine
        steps.append(K.RandomAffine(a.degrees, (a.translate, a.translate), a.scale, a.shear, p=1.0))
    if spec.jitter_p:
        saturation, hue = (spec.saturation, spec.hue) if colour else (0.0, 0.0)
        steps.append(K.ColorJitter(spec.brightness, spec.contrast, saturation, hue, p=spec.jitter_p))
    if spec.grey_p and colour:
        steps.append(K.RandomGrayscale(p=spec.grey_p))
    if spec.blur_p:
        kernel = max(3, size // 10 | 1)  # odd; 23 of 224 pixels
        steps.append(K.RandomGaussianBlur((kernel, kernel), spec.blur_sigma, p=spec.blur_p))
    if spec.solarise_p:
        # kornia's defaults draw both at random.
        steps.append(K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=spec.solarise_p))
    if spec.ink is not None:
        ink = spec.ink
        steps.append(K.RandomContrast((1 - ink.contrast, 1 + ink.contrast), p=ink.p))
        steps.append(K.RandomBrightness((1 - ink.brightness, 1 + ink.brightness), p=ink.p))
    if spec.noise_std:
        steps.append(K.RandomGaussianNoise(std=spec.noise_std, p=1.0))
    return nn.Sequential(*steps)
