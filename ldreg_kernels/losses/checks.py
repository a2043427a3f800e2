"""What the losses ask of their arguments; every message names the argument, what was expected and what came."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.validate import autocasts


def check_floating(name: str, tensor: Tensor) -> None:
    """A floating point tensor, or TypeError."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be a floating point tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}"
        )


def check_rows(name: str, tensor: Tensor) -> None:
    """A floating point tensor [N, D], or TypeError or ValueError."""
    check_floating(name, tensor)
    if tensor.ndim != 2:
        raise ValueError(f"{name} must have shape [N, D], got {list(tensor.shape)}")
    if tensor.shape[1] == 0:
        raise ValueError(f"{name} must have at least 1 column, got {list(tensor.shape)}")


def check_like(name: str, tensor: Tensor, like: str, other: Tensor) -> None:
    """The shape of another argument, or ValueError."""
    if tensor.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {like}, {list(other.shape)}, got {list(tensor.shape)}")


def working_dtype(like: str, other: Tensor, **tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in: that of all arguments, or float32 if that is wider.

    Under autocast, which hands out several, the widest of theirs; otherwise one of another dtype is a TypeError.
    """
    widest = torch.promote_types(other.dtype, torch.float32)
    for name, tensor in tensors.items():
        if tensor is None or tensor.dtype == other.dtype:
            continue
        if not autocasts(other.device.type):
            raise TypeError(f"{name} must have the dtype of {like}, {other.dtype}, got {tensor.dtype}")
        widest = torch.promote_types(widest, tensor.dtype)
    return widest
