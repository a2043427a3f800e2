"""Registration of the launches as torch ops `ldreg::*`, each with an implementation and a fake (shapes only).

`torch.library.custom_op` would be shorter, but its first call imports torch's compiler, which takes seconds. The ops
have no autograd formula: an autograd.Function above each (ops/lid.py, ops/ldreg.py) has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("ldreg", "DEF")


def register(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define `ldreg::<schema>`; `launch` runs on real tensors of any device, `fake` allocates what it would return.

    Returns the op, which is called as it is: looking it up in `torch.ops` costs a microsecond each time.
    """
    name = _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ldreg::{name}", fake, lib=_LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.ldreg, name).default
    return op
