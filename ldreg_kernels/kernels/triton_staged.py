"""The stages one by one, each a launch of its own: for debugging (LDREG_TRITON_STAGED=1), and for the interpreter.

triton_fused.py has the same stages in the same order in one launch. Here the number of failed rows is read back.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import triton
import triton.language as tl

from .triton_direct import ldreg_direct
from .triton_knn import ldreg_neighbours
from .triton_language import FAILED, NUMBERS, Problem
from .triton_lid import ldreg_estimates, ldreg_loss
from .triton_operands import ldreg_centre, ldreg_pack, ldreg_scan
from .triton_plan import Arguments, Plan
from .triton_tiles import Lists, ldreg_open, ldreg_threshold, ldreg_tiles


def _name(kernel: Any) -> str:
    """Profilers tell stages apart by it."""
    return f"ldreg_{kernel.constants['STAGE']}"


@triton.jit(do_not_specialize=NUMBERS, repr=_name)
def ldreg_stage(
    m, s, a, c, o, B, offset, wanted, k, goal: tl.float64, stride, back, panel, panel_end, first, last, base,
    STAGE: tl.constexpr, LISTED: tl.constexpr, SLAB: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """The stage that is called ldreg_<STAGE>."""
    p = Problem(m.x, m.x_stride, B, m.y, m.y_stride, m.N, m.D, m.own, offset, wanted)
    if C.path == "tiles":
        c = Lists(c.key, c.position, c.count, c.reach, c.limit, c.gamma, c.own, stride, back)
    if STAGE == "scan":
        ldreg_scan(p, s, C)
    elif STAGE == "centre":
        ldreg_centre(p, a, C)
    elif STAGE == "pack_queries":
        ldreg_pack(p, s, a, c, first, last, base, True, C)
    elif STAGE == "pack":
        ldreg_pack(p, s, a, c, first, last, base, False, C)
    elif STAGE == "open":
        ldreg_open(p, c, panel, panel_end, C)
    elif STAGE == "tiles":
        ldreg_tiles(p, s, a, c, panel, panel_end, first, last, base, C)
    elif STAGE == "threshold":
        ldreg_threshold(p, s, a, c, panel, panel_end, last, C)
    elif STAGE == "direct":
        ldreg_direct(p, s, first, last, LISTED, C)
    elif STAGE == "neighbours":
        ldreg_neighbours(p, s, a, c, o, first, last, LISTED, SLAB, C)
    elif STAGE == "estimates":
        ldreg_estimates(p, s, a, c, o, k, first, last, LISTED, SLAB, C)
    elif STAGE == "loss":
        ldreg_loss(p, o, goal, C)


def run(q: Plan, given: Arguments, offset: int, goal: float) -> None:
    """Launch after launch, on the current stream."""
    C = q.setup

    def launch(
        stage: str, first: int = 0, last: int = 0, base: int = 0, *, panel: int = 0, panel_end: int = 0, **which: bool
    ) -> None:
        numbers = (q.B, offset, q.wanted, q.k, goal, q.stride, q.back, panel, panel_end, first, last, base)
        flags = (stage, which.get("listed", False), which.get("slab", False), C)
        ldreg_stage[(q.programs,)](
            *given, *numbers, *flags, num_warps=C.num_warps, num_stages=1, enable_fp_fusion=False
        )

    rows = partial(launch, "neighbours" if C.knn else "estimates")
    if q.operands is None:
        launch("scan")
        for first in range(0, q.B, q.size.panel):
            last = min(first + q.size.panel, q.B)
            launch("direct", first, last)
            rows(first, last, slab=True)
    else:
        _tiles(q, given, launch, rows)
    if C.loss:
        launch("loss")


def _tiles(q: Plan, given: Arguments, launch: Any, rows: Any) -> None:
    C, N, chunk = q.setup, q.N, q.size.chunk
    launch("centre")
    if C.once:
        launch("pack", 0, N, 0)
    for top in range(0, q.B, q.size.panel):
        bottom = min(top + q.size.panel, q.B)
        if not C.shared:
            launch("pack_queries", top, bottom, top)
        if C.append:
            launch("open", panel=top, panel_end=bottom)
        first, last = 0, min(q.size.first_step, N)
        while first < N:
            base = 0 if C.once else first
            if not C.once:
                launch("pack", first, last, base)
            launch("tiles", first, last, base, panel=top, panel_end=bottom)
            launch("threshold", last=last, panel=top, panel_end=bottom)
            first, last = last, min(last + min(last, chunk), N)
        rows(top, bottom)
    failed = int(given.s.state[FAILED.value].item())
    for first in range(0, failed, q.fallback):
        last = min(first + q.fallback, failed)
        launch("direct", first, last, listed=True)
        rows(first, last, listed=True, slab=True)
