"""Left-over memory of every kind: what torch.empty may hold, and what a kernel must not depend on.

`poisoned_memory` (conftest.py) is one kind, NaN, and NaN loses every comparison: it hides whatever reads too far and
then asks whether something is near. The kinds here win comparisons, or are zero, or are infinite as one half of a word.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

_HALVES = {"float16": 0x7C00, "bfloat16": 0x7F80}  # +Inf; the second in the upper half of a word is float32's, too


def _kinds() -> Iterator[tuple[str, bytes]]:
    yield "0x00", b"\x00"
    yield "0xff", b"\xff"
    yield "1e30", struct.pack("<f", 1e30)
    for name, inf in _HALVES.items():
        for sign, half in (("+", inf), ("-", inf | 0x8000)):
            yield f"{sign}Inf {name} in lower halves", struct.pack("<HH", half, 0)
            yield f"{sign}Inf {name} in upper halves", struct.pack("<HH", 0, half)
            yield f"{sign}Inf {name} everywhere", struct.pack("<H", half)
    # Inf times a row of mixed signs is NaN as soon as two of them meet. One in a line of 64 makes sums infinite.
    for position in (0, 1):
        yield (
            f"one +Inf float16 in 64, at {position}",
            struct.pack("<64H", *(0x7C00 * (i == position) for i in range(64))),
        )


KINDS: dict[str, bytes] = dict(_kinds())
"""Patterns by name, for parametrize."""


def fill(tensor: torch.Tensor, pattern: bytes) -> None:
    """The pattern over and over, in all of the tensor's storage."""
    if tensor.device.type == "meta":
        return
    raw = torch.tensor([], dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    line = torch.tensor(list(pattern), dtype=torch.uint8, device=tensor.device)
    whole = len(raw) // len(line) * len(line)
    raw[:whole].view(-1, len(line)).copy_(line)
    raw[whole:].copy_(line[: len(raw) - whole])


@contextmanager
def left_over(pattern: bytes) -> Iterator[None]:
    """Every torch.empty and torch.empty_like called from Python comes filled with the pattern."""
    empty, empty_like = torch.empty, torch.empty_like

    def filled(new):
        def create(*arguments, **options):
            tensor = new(*arguments, **options)
            fill(tensor, pattern)
            return tensor

        return create

    with mock.patch.object(torch, "empty", filled(empty)), mock.patch.object(torch, "empty_like", filled(empty_like)):
        yield
