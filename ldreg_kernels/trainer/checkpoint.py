"""Checkpoints: accelerate's state for resuming, and the bare encoder as safetensors for everyone else.

A checkpoint holds weights, optimiser, gradient scaler and how far the run has come, all at the end of an epoch; rates
and random numbers are functions of that. The two newest are kept:

    checkpoints/step-00000050    a whole one
    checkpoints/unfinished       one that is being written

One rename makes an unfinished checkpoint a whole one, and nothing is removed before it: wherever the process ends, the
last whole checkpoint is there. A file may still be damaged afterwards, or have been in memory only when the power went
(zeros in a file of weights are valid weights): sums are kept of all, and the checkpoint before a damaged one is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import nn

from .config import TrainConfig, make_config
from .networks.encoder import Encoder, build_encoder
from .run_folder import RunFolderWarning

# Where accelerate puts what; `restore` is told what to do with each.
WEIGHTS, OPTIMISER, PROGRESS, SCALER = "model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "scaler.pt"

_SUMS, _KEPT = "sha256.json", 2

Parts = Mapping[str, Callable[[Any], Any]]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read; the message names the file."""


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


def save(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Write the state of everything `accelerator` prepared or was told of; remove all but the newest two checkpoints.

    Args:
        accelerator: holds the state.
        folder: of the run's checkpoints.
        step: finished optimiser steps.

    Raises:
        CheckpointError: the disk is full, say. What was written is removed, earlier checkpoints are left alone.
    """
    unfinished, whole = folder / "unfinished", folder / f"step-{step:08d}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        accelerator.save_state(str(unfinished))
        sums = {path.name: _sum(path.read_bytes()) for path in unfinished.iterdir()}
        (unfinished / _SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(whole, ignore_errors=True)  # one that was damaged, or the run would not be here again
        unfinished.rename(whole)
    except Exception as error:  # every serialiser has its own
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(f"{whole}: the checkpoint could not be written: {_line(error)}") from error
    found = newest_first(folder)
    passed_over = found[: found.index(whole)]  # damaged ones of steps that are still to come
    for superfluous in [*passed_over, *found[len(passed_over) + _KEPT :]]:
        shutil.rmtree(superfluous, ignore_errors=True)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a run.

    Args:
        folder: of the run's checkpoints; it need not exist.

    Returns:
        Their folders.
    """
    return sorted(folder.glob("step-*"), reverse=True)


def restore(folder: Path, parts: Parts) -> None:
    """Load the newest checkpoint that is whole.

    Args:
        folder: of the run's checkpoints.
        parts: for each file of a checkpoint, what takes its contents.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: there is none that can be read.
    """
    found, damaged = newest_first(folder), []
    for candidate in found:
        try:
            _load(candidate, parts)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for message in damaged:
            warnings.warn(f"{message}; {candidate.name} is used", RunFolderWarning, stacklevel=2)
        return
    if damaged:
        raise CheckpointError(f"{'; '.join(damaged)}; there is no other checkpoint")
    raise FileNotFoundError(f"no checkpoint in {folder}: nothing to resume from")


def _load(candidate: Path, parts: Parts) -> None:
    path = candidate / _SUMS
    try:
        sums = json.loads(path.read_bytes())
        for name, take in parts.items():
            path = candidate / name
            contents = path.read_bytes()
            if _sum(contents) != sums.get(name):
                raise ValueError("is not what was written there (its SHA-256 differs)")
            # accelerate's own load_state does not say which file it was that failed.
            weights = path.suffix == ".safetensors"
            take(load(contents) if weights else torch.load(BytesIO(contents), map_location="cpu", weights_only=True))
    except Exception as error:  # weights of another width, say; every reader has its own
        raise CheckpointError(f"{path}: {_line(error)}") from error


def _sum(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def _line(error: Exception) -> str:
    """An error in one line: torch lists every tensor that does not fit, the first is enough."""
    text = error.strerror if isinstance(error, OSError) else str(error)  # the path is named already
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def export_encoder(path: Path, encoder: nn.Module, config: TrainConfig, *, channels: int, image_size: int) -> None:
    """Write the encoder's weights alone, with what it takes to build it again in the file's metadata.

    Args:
        path: a `.safetensors` file.
        encoder: the trained encoder; its head and the optimiser are left out.
        config: the run's configuration.
        channels: of the images.
        image_size: side of the views in pixels.

    Raises:
        CheckpointError: the disk is full, say.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    metadata = {"config": config.model_dump_json(), "channels": str(channels), "image_size": str(image_size)}
    try:
        save_file(tensors, str(path), metadata=metadata)
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: the encoder could not be written: {_line(error)}") from error


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
