"""Warnings that are said once in a process, and blamed on the line that called the package.

What a step does every time would be said at every step; what a caller has to know is said the first time.
"""

from __future__ import annotations

import sys
import warnings

import torch

_said: set[str] = set()
_OURS = ("ldreg_kernels", "torch")


def warn_once(subject: str, message: str) -> None:
    """Warn with `message`, unless something was said of `subject` before.

    Not while torch compiles or exports: nothing is said from inside of a graph.
    """
    if subject in _said or torch.compiler.is_compiling():
        return
    _said.add(subject)
    warnings.warn(message, UserWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The `stacklevel`, seen from `warn_once`, of the innermost frame that is neither ours nor torch's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    return level
