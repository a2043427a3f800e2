"""The LID regulariser as the engine sees it: features in, R and the statistics of the batch out.

    total loss = ssl loss + beta * R,     R = -mean ln LID (ldreg),  R = +mean ln LID (minlid)

One call, three ways to compute it: `ldreg` (fused), `ldreg-naive` (the reference: cdist, sort, autograd) and
`minlid` (fused, to show what a falling LID does). The choice is a backend name handed to the op; no code here
depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..kernels.dispatch import backends
from ..ops.ldreg import LDRegStats, ldreg_loss
from .config import RegulariserConfig

# features [B, D], attached to the graph -> (R [], statistics)
Regulariser = Callable[[Tensor], tuple[Tensor, LDRegStats]]


class NoBackendError(RuntimeError):
    """No backend on this machine can compute what the configuration asks for; the message says why."""


def build_regulariser(config: RegulariserConfig, device: torch.device) -> Regulariser | None:
    """The regulariser a configuration asks for, or None for `none`.

    Args:
        config: name, k, form, estimator, backend. The weight is the engine's business.
        device: where the features will be.

    Returns:
        A function of features [B, D] that returns (R, LDRegStats), or None.

    Raises:
        NoBackendError: the configured backend, or for `auto` every fused one, is unavailable on this device.
    """
    if config.name == "none":
        return None
    if config.name == "ldreg-naive":
        backend = "reference"
    else:
        backend = fused_backend(device) if config.backend == "auto" else _available(config.backend)
    form = "min" if config.name == "minlid" else config.form
    return partial(
        ldreg_loss,
        k=config.k,
        form=form,
        target=config.target,
        estimator=config.estimator,
        backend=backend,
        return_stats=True,
    )


def fused_backend(device: torch.device) -> str:
    """The name of the fastest fused backend for a device.

    `backend="auto"` of the op may take the reference where nothing else runs. Here that would be a silent
    lie: a run called `ldreg` would be the naive one, and a comparison of the two would compare the reference
    with itself.

    Args:
        device: where the features will be.

    Returns:
        "cuda" or "triton" for a GPU, "cpu" for a CPU.

    Raises:
        NoBackendError: none of them runs here; the message has each one's reason.
    """
    wanted = ("cpu",) if device.type == "cpu" else ("cuda", "triton")
    reasons = {name: backends().get(name, "unknown backend") for name in wanted}
    for name, reason in reasons.items():
        if reason is None:
            return name
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise NoBackendError(f"no fused backend runs on {device.type} ({why}); use the regulariser ldreg-naive instead")


def _available(backend: str) -> str:
    reason = backends()[backend]
    if reason is not None:
        raise NoBackendError(f"regulariser.backend: {backend} is unavailable: {reason}")
    return backend


def milliseconds(compute: Callable[[Tensor], Tensor], features: Tensor) -> float:
    """Wall time of one forward and backward of the regulariser alone, on given features.

    Inside a training step the backward of the regulariser is interleaved with that of the network by
    autograd, so it cannot be timed there. The features are detached first, which leaves exactly the
    regulariser's own work.

    Args:
        compute: what to time, features to a scalar.
        features: [B, D].

    Returns:
        Milliseconds.
    """
    leaf = features.detach().clone().requires_grad_()
    _synchronise(leaf.device)
    start = time.perf_counter()
    compute(leaf).backward()
    _synchronise(leaf.device)
    return 1e3 * (time.perf_counter() - start)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
