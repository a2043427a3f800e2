"""Checkpoints: accelerate's state for resuming, and the bare encoder as safetensors for everyone else.

A checkpoint holds weights, optimiser, gradient scaler and how far the run has come, all at the end of an epoch; rates
and random numbers are functions of that. It is written beside the old one and then swapped in, so that an
interruption leaves a whole checkpoint.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from .config import TrainConfig, make_config
from .networks.encoder import Encoder, build_encoder


@dataclass
class Progress:
    """How far a run has come; accelerate saves it with the rest."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished optimiser steps

    def state_dict(self) -> dict[str, Any]:
        """What accelerate saves."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What accelerate restores."""
        self.epoch, self.step = state["epoch"], state["step"]


def save(accelerator: Accelerator, folder: Path) -> None:
    """Write the state of everything `accelerator` prepared or was told of, replacing the previous checkpoint.

    Args:
        accelerator: holds the state.
        folder: the checkpoint's folder.
    """
    if not folder.is_dir() and _beside(folder, "new").is_dir():  # an interrupted swap
        _beside(folder, "new").rename(folder)
    fresh, old = _beside(folder, "new"), _beside(folder, "old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    accelerator.save_state(str(fresh))
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _beside(folder: Path, end: str) -> Path:
    return folder.with_name(f"{folder.name}.{end}")


def restore(accelerator: Accelerator, folder: Path) -> None:
    """Load a checkpoint into the objects that `accelerator` prepared or was told of.

    Args:
        accelerator: prepared exactly as when the checkpoint was written.
        folder: the checkpoint's folder.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    if not folder.is_dir():  # perhaps the process ended between the two renames of `save`: both copies are whole then
        folder = next((c for c in (_beside(folder, "new"), _beside(folder, "old")) if c.is_dir()), folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint in {folder}: nothing to resume from")
    accelerator.load_state(str(folder))


def export_encoder(path: Path, encoder: nn.Module, config: TrainConfig, *, channels: int, image_size: int) -> None:
    """Write the encoder's weights alone, with what it takes to build it again in the file's metadata.

    Args:
        path: a `.safetensors` file.
        encoder: the trained encoder; its head and the optimiser are left out.
        config: the run's configuration.
        channels: of the images.
        image_size: side of the views in pixels.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    metadata = {"config": config.model_dump_json(), "channels": str(channels), "image_size": str(image_size)}
    save_file(tensors, str(path), metadata=metadata)


def load_encoder(path: Path) -> Encoder:
    """Rebuild an encoder from `export_encoder`'s file.

    Args:
        path: a `.safetensors` file.

    Returns:
        The encoder in evaluation mode, on the CPU.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    config = make_config(json.loads(metadata["config"]))
    encoder = build_encoder(config.encoder, channels=int(metadata["channels"]), image_size=int(metadata["image_size"]))
    encoder.load_state_dict(load_file(str(path)))
    return encoder.eval()
