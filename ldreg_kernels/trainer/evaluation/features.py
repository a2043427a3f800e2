"""Features of clean images: no augmentation, the encoder in evaluation mode, batch after batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.loader import clean_batches
from ..data.source import ImageSource
from ..views import DeviceViews


@dataclass(frozen=True)
class Clean:
    """How an image becomes an input without augmentation.

    Attributes:
        crop: brings an image to the size of the views.
        views: scales and normalises as in training.
        device: of the encoder.
        workers: processes that read images.
    """

    crop: Callable[[Image.Image], Image.Image]
    views: DeviceViews
    device: torch.device
    workers: int = 0


class Encoded(NamedTuple):
    """Features with their labels; images that cannot be decoded are left out and named."""

    features: Tensor  # [M, D] float32, on the CPU
    labels: Tensor  # [M] int64
    unreadable: list[str]


@torch.no_grad()
def encode(encoder: nn.Module, source: ImageSource, clean: Clean, batch_size: int = 512) -> Encoded:
    """Features of all images of a source.

    Args:
        encoder: images [N, C, H, W] to features [N, D]; in evaluation mode for the time being.
        source: the images.
        clean: how they are read.
        batch_size: images per forward pass.

    Returns:
        Features, labels, and the names of images that could not be decoded.
    """
    was_training = encoder.training
    encoder.eval()
    features, labels, unreadable = [], [], []
    for batch in clean_batches(source, clean.crop, batch_size=batch_size, workers=clean.workers):
        images = clean.views.clean(batch.views[0].to(clean.device))  # [N, C, H, W]
        features.append(encoder(images).float().cpu())
        labels.append(batch.labels)
        unreadable += batch.unreadable
    encoder.train(was_training)
    return Encoded(torch.cat(features), torch.cat(labels), unreadable)
