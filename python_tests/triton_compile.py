"""Compile the blocks of the Triton tests ahead of time: python python_tests/triton_compile.py [CAPABILITY].

Every stage in every variant that the tests launch, each by itself, as in the tests. In a process of its own, without
the interpreter, with whatever Triton comes first on the path. Exit code 1 if one does not compile, which is said.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple
from unittest import mock

from triton_blocks import SMALL_ON_GPU, WAYS, WIDE_ON_GPU

from benchmarks.compiled import Recorder, cache_folder, compiled

BLOCKS = {"SMALL": SMALL_ON_GPU, "WIDE": WIDE_ON_GPU}


class Kernel(NamedTuple):
    """One launch of `ldreg_stage`."""

    blocks: str
    way: str
    knn: bool
    stage: str
    listed: bool
    slab: bool


class Recorders(Recorder):
    """Keeps every launch."""

    def __init__(self, kernel) -> None:
        super().__init__(kernel)
        self.launches: dict[tuple, Recorder] = {}

    def __call__(self, *arguments, **options) -> None:
        *_, stage, listed, slab, _ = arguments
        self.launches[stage, listed, slab] = Recorder(self.kernel, arguments, options)


def launches(capability: int, blocks: str, way: str, knn: bool) -> dict[Kernel, Recorder]:
    """What a staged call launches; five of its rows fail, so that every pair comes again."""
    import torch

    from ldreg_kernels.kernels import triton_launch, triton_staged, tuning
    from ldreg_kernels.kernels.triton_lid import Output

    B, N, D, k = 40, 100, 20, 8
    shape = tuning.Shape(B, N, D, k, "float32", capability)
    modes = {"knn": True} if knn else {"gradient": True, "loss": True, "track": (2, 5)}
    chosen = dataclasses.replace(tuning.choose(shape), **{**BLOCKS[blocks], **WAYS[way]})
    plan = triton_launch.plan(shape, chosen, 1, k=k, strides=(D, D), fused=False, self_kind=1, **modes)
    x, y, out = torch.zeros(B, D), torch.zeros(N, D), torch.zeros(B * N)
    other = {"indices": torch.zeros(B, k, dtype=torch.int64), "degenerate": torch.zeros(B, dtype=torch.bool)}
    call = triton_launch.Call(x, y, x, 0, 0.0, Output(**{name: other.get(name, out) for name in Output._fields}))
    memory = torch.empty(plan.nbytes, dtype=torch.uint8), torch.full((8,), 5)
    recorders = Recorders(triton_staged.ldreg_stage)
    with (
        mock.patch.object(triton_staged, "ldreg_stage", recorders),
        mock.patch.object(triton_launch, "memory", return_value=memory),
    ):
        triton_launch.run(plan, call)
    return {Kernel(blocks, way, knn, *which): launch for which, launch in recorders.launches.items()}


def kernels(capability: int) -> Iterator[Kernel]:
    """Each once: `knn` and the losses differ in one stage, the two ways of tiles in what touches a list."""
    for blocks in BLOCKS:
        for way in WAYS:
            for knn in (False, True):
                for kernel in launches(capability, blocks, way, knn):
                    seen = kernel.stage in ("centre", "pack_queries", "loss") or kernel.listed
                    if not (knn and kernel.stage != "neighbours") and not (way == "lists" and seen):
                        yield kernel


def attempt(kernel: Kernel, capability: int) -> str | None:
    """What the compiler has against it."""
    try:
        compiled(launches(capability, *kernel[:3])[kernel], capability)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[-300:]}"
    return None


def main() -> int:
    """Compile, and say what fails."""
    import triton

    capability = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    work = list(kernels(capability))
    failures = 0
    with cache_folder(), ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for kernel, error in zip(work, pool.map(attempt, work, [capability] * len(work)), strict=True):
            if error is not None:
                failures += 1
                print(f"{kernel} does not compile: {error}", flush=True)
    print(f"Triton {triton.__version__}: {len(work)} kernels, {failures} do not compile")
    return 1 if failures or not work else 0


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    sys.exit(main())
