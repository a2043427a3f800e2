"""Images for the trainer: scikit-learn's handwritten digits, which ship inside the library, so nothing is
downloaded.

1797 grey images of 8 x 8 pixels in ten classes (UCI ML hand-written digits, test part). The split is
stratified and depends on the seed alone. Labels are used by the evaluation only, never by the training loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from .config import ConfigError, DataConfig


@dataclass(frozen=True)
class ImageData:
    """A data set, whole in memory on the CPU.

    Attributes:
        train_images: [N, C, H, W] float32 in [0, 1].
        train_labels: [N] int64.
        test_images: [M, C, H, W] float32 in [0, 1].
        test_labels: [M] int64.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_data(config: DataConfig, seed: int) -> ImageData:
    """Load the images and split them into a training and a held-out part.

    Args:
        config: which data set, and the held-out fraction.
        seed: decides the split.

    Returns:
        The split, stratified by class.
    """
    digits = load_digits()
    images = torch.from_numpy((digits.images / 16.0).astype(np.float32))[:, None]  # [1797, 1, 8, 8], 17 grey levels
    labels = torch.from_numpy(digits.target.astype(np.int64))  # [1797]
    train, test = train_test_split(
        np.arange(len(labels)), test_size=config.test_fraction, random_state=seed, stratify=digits.target
    )
    return ImageData(images[train], labels[train], images[test], labels[test])


def training_loader(data: ImageData, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of training images in an order that is shuffled anew every epoch.

    The last, smaller batch is dropped: k neighbours, NT-Xent and batch normalisation all depend on the number
    of rows.

    Args:
        data: the images.
        batch_size: images per batch.

    Returns:
        A loader of ([batch_size, C, H, W],) tuples. Its order comes from the seedable sampler that accelerate
        puts in.

    Raises:
        ConfigError: there are fewer training images than one batch.
    """
    rows = len(data.train_images)
    if batch_size > rows:
        raise ConfigError(f"batch_size: must be at most {rows}, the number of training images, got {batch_size}")
    return DataLoader(TensorDataset(data.train_images), batch_size=batch_size, shuffle=True, drop_last=True)
