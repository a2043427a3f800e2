"""What the losses ask of their arguments; every message names the argument, what was expected and what came."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels import dispatch
from ..ops import validate

_SMALLEST, _LARGEST = 1e-37, 1e37


def check_floating(name: str, tensor: Tensor) -> None:
    """A dense floating point tensor of 16 bits or more, or TypeError."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be a floating point tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}"
        )
    if tensor.dtype not in validate.DTYPES:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {tensor.layout}")


def check_rows(name: str, tensor: Tensor) -> None:
    """A floating point tensor [N, D], or TypeError or ValueError."""
    check_floating(name, tensor)
    if tensor.ndim != 2:
        raise ValueError(f"{name} must have shape [N, D], got {list(tensor.shape)}")
    if tensor.shape[1] == 0:
        raise ValueError(f"{name} must have at least 1 column, got {list(tensor.shape)}")


def check_like(name: str, tensor: Tensor, like: str, other: Tensor) -> None:
    """The shape and the device of another argument, or ValueError."""
    if tensor.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {like}, {list(other.shape)}, got {list(tensor.shape)}")
    check_device(name, tensor, like, other)


def check_device(name: str, tensor: Tensor, like: str, other: Tensor) -> None:
    """The device of another argument, or ValueError."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {like}, {other.device}, got {tensor.device}")


def working_dtype(like: str, other: Tensor, **tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in: that of all arguments, or float32 if that is wider.

    Under autocast, which hands out several, the widest of theirs; otherwise one of another dtype is a TypeError.
    """
    widest = torch.promote_types(other.dtype, torch.float32)
    for name, tensor in tensors.items():
        if tensor is None or tensor.dtype == other.dtype:
            continue
        if not validate.autocasts(other.device.type):
            raise TypeError(f"{name} must have the dtype of {like}, {other.dtype}, got {tensor.dtype}")
        widest = torch.promote_types(widest, tensor.dtype)
    return widest


def check_bank(name: str, bank: Tensor, like: str, other: Tensor) -> None:
    """Rows [K, D], K >= 1, of the width and on the device of another argument, or TypeError or ValueError."""
    check_rows(name, bank)
    columns = other.shape[1]
    if bank.shape[0] == 0 or bank.shape[1] != columns:
        raise ValueError(f"{name} must have shape [K, {columns}] with K >= 1, the D of {like}, got {list(bank.shape)}")
    check_device(name, bank, like, other)


def check_temperature(temperature: float | Tensor, like: Tensor | None = None) -> None:
    """A positive number, or a 0-d floating point tensor."""
    check_positive("temperature", temperature, like)


def check_positive(name: str, value: float | Tensor, like: Tensor | None = None) -> None:
    """A positive number, or a 0-d floating point tensor (which is not read: a GPU would have to be waited for)."""
    if isinstance(value, Tensor):
        check_scalar(name, value, like)
        return
    check_number(name, value, "a number or a 0-d tensor")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    if not _SMALLEST <= value <= _LARGEST:
        raise ValueError(f"{name} must be in [1e-37, 1e37], so that float32 holds it and its inverse, got {value}")


def check_positive_number(name: str, value: float) -> None:
    """A positive number, and no tensor."""
    check_number(name, value)
    check_positive(name, value)


def check_finite(name: str, value: float | Tensor, like: Tensor | None = None) -> None:
    """A finite number, or a 0-d floating point tensor (which is not read)."""
    if isinstance(value, Tensor):
        check_scalar(name, value, like)
        return
    check_number(name, value, "a number or a 0-d tensor")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
    if not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{name} must be in [-1e37, 1e37], so that float32 holds it, got {value}")


def check_number(name: str, value: float, what: str = "a number") -> None:
    """A number, or TypeError. (`validate.number` asks whether it is finite, which torch.compile cannot of a symbol.)"""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {what}, got {validate.shown(value)}")


def check_scalar(name: str, value: Tensor, like: Tensor | None = None) -> None:
    """A floating point tensor without dimensions, on the device of `like`."""
    check_floating(name, value)
    if value.ndim != 0:
        raise ValueError(f"{name} must be a number or a 0-d tensor, got shape {list(value.shape)}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name} must be on the device of the rows, {like.device}, got {value.device}")


def scalar_like(value: float | Tensor, rows: Tensor) -> Tensor:
    """A number or a 0-d tensor, checked, as a 0-d tensor of the dtype and device of `rows`."""
    if isinstance(value, Tensor):
        return value.to(rows.dtype)
    return rows.new_ones(()) * value  # not torch.full, which makes a constant of a symbol of torch.compile


def scale_of(temperature: float | Tensor, rows: Tensor) -> Tensor:
    """One over the temperature, 0-d, of the dtype and device of `rows`."""
    return rows.new_ones(()) / (temperature.to(rows.dtype) if isinstance(temperature, Tensor) else temperature)


def shown_temperature(temperature: float | Tensor) -> str:
    """For `repr`: the number, or that it is a tensor, which may be on a GPU."""
    return validate.shown(temperature) if isinstance(temperature, Tensor) else str(temperature)


def check_backend(backend: str) -> None:
    """A name that `backend=` may have, or ValueError."""
    validate.choice("backend", backend, dispatch.NAMES)


def check_pair_backend(backend: str) -> None:
    """A name that `backend=` of a loss over all pairs may have, or ValueError."""
    validate.choice("backend", backend, dispatch.PAIR_NAMES)
