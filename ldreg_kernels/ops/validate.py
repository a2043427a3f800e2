"""Every check of every argument, before any launch: an error names the argument, what was expected and what came.

Nothing is clamped unless asked for, and nothing is converted silently, except that a y that requires grad is treated as
the constant it is documented to be.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..kernels import contract, dispatch
from ..kernels.notice import warn_once
from . import own_rows
from .call import remembered

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def features(x: Any, y: Any, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor | None]:
    """The two feature matrices, checked: 2-D, floating, same dtype, device and D.

    Under autocast, which hands out both, two dtypes become the wider one. `names` are for messages.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        _refuse_tracing()
    name, other = names
    _matrix(name, x)
    if x.shape[1] == 0:
        raise ValueError(f"{name} must have at least one feature (D >= 1), got shape {_shape(x)}")
    if y is None:
        return x, y
    _matrix(other, y)
    if y.shape[1] != x.shape[1]:
        raise ValueError(
            f"{other} must have the same number of features as {name} ({x.shape[1]}), got shape {_shape(y)}"
        )
    if y.device != x.device:
        raise ValueError(f"{other} must be on the device of {name} ({x.device}), got {y.device}")
    if y.dtype == x.dtype:
        return x, y
    if not autocasts(x.device.type):
        raise TypeError(f"{other} must have the dtype of {name} ({x.dtype}), got {y.dtype}")
    wider = torch.promote_types(x.dtype, y.dtype)
    return x.to(wider), y.to(wider)


def autocasts(kind: str) -> bool:
    """Whether autocast is on for a type of device; there is none for "meta"."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _refuse_tracing() -> NoReturn:
    raise RuntimeError(
        "ldreg_kernels: torch.jit.trace cannot record these functions, nor can what is built on it (the old ONNX "
        "exporter); torch.compile and torch.export can"
    )


def _matrix(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dim() != 2:
        raise ValueError(f"{name} must be 2-D (rows, features), got shape {_shape(t)}")
    if t.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}")
    if t.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {t.layout}")


def _shape(t: Tensor) -> str:
    return str(tuple(t.shape))


def shown(value: Any) -> str:
    """`value` in a message; of a tensor, which may be large, its shape and dtype."""
    if isinstance(value, Tensor):
        return f"a {type(value).__name__} of shape {_shape(value)} and dtype {value.dtype}"
    return repr(value)


def _with_type(value: Any) -> str:
    return shown(value) if isinstance(value, Tensor) else f"{type(value).__name__} {value!r}"


def integer(name: str, value: Any) -> int:
    """`value` as an int; bools, floats and tensors (which would have to be waited for) are refused."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]  # a SymInt under torch.compile
    if not isinstance(value, (bool, Tensor)):
        with contextlib.suppress(TypeError):
            return operator.index(value)  # a numpy integer
    raise TypeError(f"{name} must be an int, got {_with_type(value)}")


def number(name: str, value: Any) -> float:
    """`value` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise TypeError(f"{name} must be a finite number, got {_with_type(value)}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """`value` as a bool, which it has to be."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {_with_type(value)}")
    return value


def self_index(value: Any, x: Tensor, y: Tensor | None) -> tuple[int | None, Tensor | None]:
    """`self_index` as (offset, map), one of them None; both None when no row leaves anything out.

    The values of a map are checked where the op runs, not here: reading them while compiling would break the graph.
    """
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f'self_index must be an int, an int64 tensor, "auto" or None, got {value!r}')
        value = None if y is None else _found_rows(x, y)
    if y is None:
        if value is not None:
            raise ValueError(
                f"self_index must be None when y is None (each row's own index is left out), got {shown(value)}"
            )
        return 0, None
    if value is None:
        return None, None
    if isinstance(value, Tensor):
        if value.dtype != torch.int64:
            raise TypeError(f"self_index must be an int or an int64 tensor, got a {value.dtype} tensor")
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"self_index must have shape ({x.shape[0]},), one entry for each row of x, got {_shape(value)}"
            )
        if value.device != x.device:
            raise ValueError(f"self_index must be on the device of x ({x.device}), got {value.device}")
        return None, value
    offset = integer("self_index", value)
    if offset < 0 or offset + x.shape[0] > y.shape[0]:
        raise ValueError(
            f"self_index must be an offset in [0, {y.shape[0] - x.shape[0]}] so that row i of x is row "
            f"self_index + i of y ({x.shape[0]} rows in x, {y.shape[0]} in y), got {offset}"
        )
    return offset, None


def _found_rows(x: Tensor, y: Tensor) -> int | Tensor | None:
    if torch.compiler.is_compiling() or not (own_rows.plain(x) and own_rows.plain(y)):
        raise ValueError(
            'self_index="auto" reads the rows, which torch.compile, torch.export and torch.func do not show: '
            "self_index must be an offset, a map or None there"
        )
    return own_rows.find(x, y)


def self_map(value: Tensor, references: int) -> None:
    """Check the entries of a self-index map against the number of reference rows.

    Not while a CUDA graph is captured, which reading a result would end: there the values come with the replay.
    """
    if value.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if value.numel() and not bool(((value >= -1) & (value < references)).all()):
        bad = value[(value < -1) | (value >= references)][0].item()
        raise ValueError(
            f"self_index entries must be in [-1, {references - 1}] for {references} reference rows, got {bad}"
        )


def neighbours(
    name: str, k: Any, smallest: int, x: Tensor, y: Tensor | None, leaves_self_out: bool, clamp: bool = False
) -> int:
    """`k` in [smallest, rows of y, less one where self is left out].

    With `clamp`, as many of k as there are, which may be fewer than `smallest`; it is said once.
    """
    k = integer(name, k)
    largest = (x if y is None else y).shape[0] - int(leaves_self_out)
    # An empty batch asks for nothing: only the lower bound can be wrong then.
    if smallest <= k and (k <= largest or (x.shape[0] == 0 and (y is None or not clamp))):
        return k
    if clamp and k >= smallest:
        warn_once(
            f"clamp {name} {k}",
            f"{name} is {k}, but a batch has only {largest} neighbours for a row: those are used, here and in other "
            "batches that are too small (stats say how many)",
        )
        return largest
    rows = f"{largest + leaves_self_out} rows{' with self excluded' if leaves_self_out else ''}"
    raise ValueError(f"{name} must be in [{smallest}, {largest}] for {rows}, got {k}")


def at_least(name: str, k: Any, smallest: int) -> int:
    """`k` >= smallest, whatever the batch."""
    k = integer(name, k)
    if k < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {k}")
    return k


def smallest_k(estimator: str) -> int:
    """The fewest neighbours an estimator is defined for."""
    return 3 if estimator == "hill_unbiased" else 2


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """`value` as one of the names in `allowed`."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {shown(value)}")
    return str(value)


@remembered
def modes(estimator: Any, form: Any, reduction: Any, backend: Any, precision: Any) -> None:
    """Check the arguments that are names; `l2` is a root of a mean, so it has no other reduction."""
    choice("estimator", estimator, contract.ESTIMATORS)
    choice("form", form, contract.FORMS)
    choice("reduction", reduction, contract.REDUCTIONS)
    if form == "l2" and reduction != "mean":
        raise ValueError(
            f'reduction must be "mean" with form="l2" (the root of a mean over the batch), got {shown(reduction)}'
        )
    choice("backend", backend, dispatch.NAMES)
    choice("precision", precision, contract.PRECISIONS)


def track(value: Any) -> contract.Track:
    """`track` as a tuple of (estimator, k), each k large enough for its estimator."""
    try:
        entries = tuple((name, k) for name, k in value)
    except (TypeError, ValueError):
        raise TypeError(f"track must be a sequence of (estimator, k) pairs, got {shown(value)}") from None
    return tuple(
        (
            choice(f"track[{i}] estimator", name, contract.ESTIMATORS),
            at_least(f"track[{i}] k", k, smallest_k(name)),
        )
        for i, (name, k) in enumerate(entries)
    )


def target(form: str, value: Any) -> float | None:
    """`target` > 0 with form "target", and only there."""
    if form != "target":
        if value is not None:
            raise ValueError(f'target is used by form="target" only, got target={shown(value)} with form={form!r}')
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ValueError(f'target must be a positive finite number with form="target", got {shown(value)}')
    return float(value)
