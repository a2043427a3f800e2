"""Self-supervised methods, one file each. `base.py` is the contract; `build_method` the one list of them."""

from __future__ import annotations

from ..config import TrainConfig
from ..networks.encoder import build_encoder
from .base import Batch, Group, Method, Output, Time
from .byol import BYOL
from .mae import MAE
from .simclr import SimCLR

_METHODS: dict[str, type[Method]] = {"simclr": SimCLR, "byol": BYOL, "mae": MAE}
VIEWS_PER_IMAGE = {name: method.view_count for name, method in _METHODS.items()}

__all__ = ["BYOL", "MAE", "VIEWS_PER_IMAGE", "Batch", "Group", "Method", "Output", "SimCLR", "Time", "build_method"]


def build_method(config: TrainConfig, *, channels: int, image_size: int) -> Method:
    """The method a configuration asks for, with fresh weights drawn from torch's global generator.

    Args:
        config: the run's configuration.
        channels: of the images.
        image_size: side of the views in pixels.

    Returns:
        The method.
    """
    encoder = build_encoder(config.encoder, channels=channels, image_size=image_size)
    return _METHODS[config.method.name].build(config.method, encoder, channels)
