"""Interpreted launches, in half the time: Triton's interpreter prepares `triton.language` anew at every nested call.

That is about 0.3 ms for each tl.sum, tl.zeros or helper of ours, and a kernel makes thousands of such calls; once per
launch is enough. Triton 3.6 and 3.7 are known; where the interpreter looks different it is left as it is.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_one_launch = threading.Lock()  # the interpreter's state is global


@contextmanager
def interpreting() -> Iterator[None]:
    """Around an interpreted launch. Infinities and NaN in masked lanes are none of numpy's business."""
    prepare = getattr(interpreter, "_patch_lang", None)
    with _one_launch, np.errstate(all="ignore"):
        if prepare is None:
            yield
            return
        interpreter._patch_lang = _once_per_launch(prepare)
        try:
            yield
        finally:
            interpreter._patch_lang = prepare


def _once_per_launch(prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`prepare(function)` changes the language modules that the function's file knows: tl, tl.core or both.

    It returns a scope that puts them back; the launch calls `restore` of the first one when it is through.
    """
    prepared: dict[frozenset[int], Any] = {}

    class Launch:
        def restore(self) -> None:
            while prepared:
                prepared.popitem()[1].restore()

    def prepare_once(function: Any) -> Any:
        modules = frozenset(
            id(value) for value in function.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)
        )
        if modules not in prepared:
            prepared[modules] = prepare(function)
        return Launch()

    return prepare_once
