"""Registration of the launches as torch ops `ldreg::*`, each with an implementation, a fake (shapes only) and a rule
for `torch.func.vmap` (one launch after another).

`torch.library.custom_op` would be shorter, but its first call imports torch's compiler, which takes seconds. The ops
have no autograd formula: an autograd.Function above each (ops/lid.py, ops/ldreg.py) has it.

An op can be registered once in a process. A module of this package that is loaded again (importlib.reload, a notebook's
autoreload, the package dropped from sys.modules) takes the op that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Kept by torch's own namespace: an op goes when its library does, and this module may be loaded anew.
_KEPT = "_ldreg_kernels_library"
if not hasattr(torch.ops.ldreg, _KEPT):
    setattr(torch.ops.ldreg, _KEPT, torch.library.Library("ldreg", "DEF"))
_LIBRARY: torch.library.Library = getattr(torch.ops.ldreg, _KEPT)


def register(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define `ldreg::<schema>`; `launch` runs on real tensors of any device, `fake` allocates what it would return.

    Returns the op, which is called as it is: looking it up in `torch.ops` costs a microsecond each time.

    Raises:
        RuntimeError: the op is there, with another schema: two versions of the package in one process.
    """
    name = schema.partition("(")[0]
    if hasattr(torch.ops.ldreg, name):
        there: Callable[..., Any] = getattr(torch.ops.ldreg, name).default
        if there._schema != torch._C.parse_schema(f"ldreg::{schema}"):  # type: ignore[attr-defined]
            raise RuntimeError(f"ldreg::{name} is registered by another version of ldreg_kernels; restart Python")
        return there
    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ldreg::{name}", fake, lib=_LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.ldreg, name).default
    torch.library.register_vmap(f"ldreg::{name}", _one_by_one(op, fake), lib=_LIBRARY)
    return op


def _one_by_one(op: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """A batching rule: `op` on every element of the batch, results stacked along a new first dimension."""

    def rule(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        pairs = list(zip(arguments, dims, strict=True))
        if info.batch_size == 0:  # shapes are all there is to say
            one = fake(*(a if dim is None else a.new_empty(a.movedim(dim, 0).shape[1:]) for a, dim in pairs))
            empty = [output.new_empty(0, *output.shape) for output in ([one] if isinstance(one, torch.Tensor) else one)]
            return (empty[0], 0) if isinstance(one, torch.Tensor) else (tuple(empty), (0,) * len(empty))
        results = [op(*(a if dim is None else a.select(dim, i) for a, dim in pairs)) for i in range(info.batch_size)]
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(outputs) for outputs in zip(*results, strict=True)), (0,) * len(results[0])

    return rule
