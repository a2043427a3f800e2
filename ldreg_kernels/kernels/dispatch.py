"""Which backend runs: names to modules, with a reason for every one that cannot.

`auto` takes the fastest available for the device. A backend asked for by name that cannot run raises with its reason;
nothing falls back silently. Modules are imported on first use, so importing the package needs no extension, no GPU.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from .contract import Pairs

# name -> (module, device types it serves); order is `auto`'s preference
_BACKENDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cuda": ("cuda_backend", ("cuda",)),
    "triton": ("triton_backend", ("cuda",)),
    "cpu": ("native", ("cpu",)),
    "reference": ("reference", ("cpu", "cuda", "mps", "xpu")),
}
NAMES = ("auto", *_BACKENDS)
PAIR_NAMES = ("auto", "triton", "cpu", "reference")  # that have sums over pairs


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{_BACKENDS[name][0]}", __package__)


def unavailable_reason(name: str) -> str | None:
    """Why backend `name` cannot run on this machine, or None if it can."""
    reason: str | None = _module(name).unavailable_reason()
    return reason


def devices(name: str) -> tuple[str, ...]:
    """The device types that backend `name` serves here: interpreted or simulated, GPU kernels work on CPU tensors."""
    serves = vars(_module(name)).get("device_types")
    return _BACKENDS[name][1] if serves is None else serves()


def backends() -> dict[str, str | None]:
    """Every backend of this package with the reason it is unavailable, None for those that run.

    Returns:
        `{"cuda": reason, "triton": reason, "cpu": None, "reference": None}`, in `auto`'s order of preference.
    """
    return {name: unavailable_reason(name) for name in _BACKENDS}


def resolve(name: str, device: torch.device, *, k: int = 0, columns: int = 0) -> ModuleType:
    """The module that serves `backend=name` for tensors on `device`.

    `auto` passes over a backend whose `LARGEST_K` or `LARGEST_COLUMNS` the call exceeds; asked for by name, it says so.

    Raises:
        ValueError: unknown name, or a backend that does not serve this device.
        RuntimeError: a backend asked for by name that is unavailable, with the reason.
    """
    kind = device.type  # a text made anew each time it is asked for
    if name == "auto":
        for candidate, (_, usual) in _BACKENDS.items():
            if kind not in usual or unavailable_reason(candidate) is not None:
                continue
            module = _module(candidate)
            limits = vars(module)  # getattr is slow where there is nothing to get
            if limits.get("LARGEST_K", k) < k or limits.get("LARGEST_COLUMNS", columns) < columns:
                continue
            if kind in devices(candidate):  # not the interpreter, which is never the fastest
                return module
        raise RuntimeError(f"no backend serves {kind} tensors; see ldreg_kernels.backends()")
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    reason = unavailable_reason(name)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} is unavailable: {reason}")
    if kind not in devices(name):
        raise ValueError(f"backend {name!r} serves {' and '.join(devices(name))} tensors, got x on {device}")
    return _module(name)


def resolve_pairs(name: str, pairs: Pairs) -> ModuleType:
    """The module whose `pair_sums` and `pair_gradients` serve `backend=name` for these rows.

    float64 is the reference's; `auto` takes it where no faster backend has the sums.

    Raises:
        ValueError: unknown name, a backend without these sums, or one that does not serve this device or dtype.
        RuntimeError: a backend asked for by name that is unavailable, with the reason.
    """
    if name not in PAIR_NAMES:
        raise ValueError(f"backend must be one of {', '.join(PAIR_NAMES)} for sums over pairs, got {name!r}")
    double, kind = pairs.x.dtype == torch.float64, pairs.x.device.type
    if name == "auto":
        for candidate in () if double else PAIR_NAMES[1:-1]:
            usual = kind in _BACKENDS[candidate][1]
            if usual and unavailable_reason(candidate) is None and kind in devices(candidate):
                return _module(candidate)
        return resolve("reference", pairs.x.device)
    if double and name != "reference":
        raise ValueError(f'backend must be "auto" or "reference" for float64 rows, got {name!r}')
    return resolve(name, pairs.x.device)


def pair_formula(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, own: int | None, views: int) -> Tensor:
    """The sums over pairs as plain torch, on any device, differentiable as often as wanted."""
    values: Tensor = _module("reference").formula(x, y, scale, bias, own, views)
    return values
