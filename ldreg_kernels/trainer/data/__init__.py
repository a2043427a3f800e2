"""Images to train on: eight data sets behind one interface, divided and read by the same rules.

Nothing here downloads anything. Labels are for the evaluation only, never for the training loss.
"""

from __future__ import annotations

from importlib import import_module

from ..config.data import DataConfig
from .loader import RawBatch, TrainingLoader, clean_batches, training_loader
from .source import ArraySource, ImageData, ImageSource, Subset, UnreadableImageError, labels_of
from .split import fewer

__all__ = [
    "ArraySource",
    "ImageData",
    "ImageSource",
    "RawBatch",
    "Subset",
    "TrainingLoader",
    "UnreadableImageError",
    "clean_batches",
    "labels_of",
    "load_data",
    "training_loader",
]

# Imported when asked for, so that a worker process does not import scikit-learn for nothing.
_MODULES = {
    "digits": ".digits",
    "fashion-mnist": ".fashion_mnist",
    "mnist5k": ".mnist5k",
    "patches": ".patches",
    "cifar10": ".cifar",
    "cifar100": ".cifar",
    "folder": ".folder",
    "synthetic": ".synthetic",
}


def load_data(config: DataConfig) -> ImageData:
    """Find a data set, check its files and divide it.

    Args:
        config: which one, where, and how many images.

    Returns:
        Its training and its test part.

    Raises:
        ConfigError: it is not on this machine, or a file is damaged; the message names the file or the folders.
    """
    data: ImageData = import_module(_MODULES[config.dataset], __package__).load(config)
    train, test = fewer(data.train, data.test, config)
    return ImageData(data.name, train, test, data.classes, data.image_size)
