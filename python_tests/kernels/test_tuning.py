"""Before a Triton kernel runs: whether it can, with which blocks, in how much memory.

Nothing is launched here: workspaces of any size are planned on the meta device.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from itertools import product

import pytest
import torch

from benchmarks.goals import WORKSPACE_MB
from ldreg_kernels.kernels import triton_backend, tuning
from ldreg_kernels.kernels.contract import Problem
from ldreg_kernels.kernels.tuning import Shape, choose, power_of_two, setup_for, sizes

MISSING = triton_backend.unavailable_reason()
needs_triton = pytest.mark.skipif(MISSING is not None, reason=f"backend 'triton' is unavailable: {MISSING}")

CAPABILITIES = [80, 86, 89, 90, 100]
SIZES = [
    *product([1, 33, 4096, 131072], [2, 31, 300, 8192, 8193, 131072], [1, 3, 64, 65, 768, 2048, 8193]),
    (1, 1, 1),
    (300, 1 << 20, 128),
    (1 << 20, 300, 128),
    (256, 131072, 65536),
]
SHAPES = [
    Shape(B, N, D, wanted, dtype, 0)
    for B, N, D in SIZES
    for wanted in sorted({1, min(N, 65), max(1, N // 4 - 1) if N < 10000 else 1024})
    for dtype in ("float32", "bfloat16", "float64")
]
NOT_SIZES = {"path", "num_warps", "stages", "append", "in_place", "words"}


def named(shape: Shape) -> str:
    return f"{shape.capability}: ({shape.B}, {shape.N}, {shape.D}, {shape.wanted}) {shape.dtype}"


# ------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("capability", [0, *CAPABILITIES])
def test_blocks_can_be_compiled(capability: int) -> None:
    """Powers of two, and no block beyond what Triton takes."""
    for shape in SHAPES:
        shape = dataclasses.replace(shape, capability=capability)
        C = setup_for(shape, choose(shape))
        lengths = {f.name: getattr(C, f.name) for f in dataclasses.fields(tuning.Blocks) if f.name not in NOT_SIZES}
        odd = {name: length for name, length in (lengths | {"cap": C.cap}).items() if length != power_of_two(length)}
        assert not odd, named(shape)
        largest = max(
            *(C.tile_b * C.tile_n, C.tile_b * C.tile_d, C.tile_n * C.tile_d, C.direct_b * C.direct_n * C.direct_d),
            *(C.pack_rows * C.pack_d, 64 * C.centre_d, C.rows * C.together * C.row_d, C.rows * C.sort * C.sort),
            *(C.select_rows * C.select, C.rows * C.slab_block, C.rows * C.list_block, C.loss_block),
        )
        assert largest <= 1 << 20, named(shape)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_blocks_fit_a_multiprocessor(capability: int) -> None:
    """In registers 32 numbers of a thread, twice that for the features of references; the tiles in shared memory."""
    for shape in SHAPES:
        shape = dataclasses.replace(shape, capability=capability)
        C = choose(shape)
        threads = 32 * C.num_warps
        numbers = 32 * threads // (2 if shape.dtype == "float64" else 1)
        assert C.rows * C.row_d <= numbers, named(shape)
        assert C.together * C.rows * C.row_d <= 2 * numbers, named(shape)
        assert max(C.rows * C.list_block, C.rows * C.slab_block) <= numbers, named(shape)
        assert max(C.rows * C.sort * C.sort, C.select_rows * C.select) <= 32 * threads, named(shape)
        assert C.tile_b * C.tile_n <= 128 * threads, named(shape)
        assert min(C.tile_b, C.tile_n, C.tile_d) >= 16, f"{named(shape)}: less than a tensor core takes"
        shared = 99 if capability in (86, 89) else 163 if capability == 80 else 227
        assert C.stages * (C.tile_b + C.tile_n) * C.tile_d * 2 <= shared << 10, named(shape)


@pytest.mark.parametrize(
    ("capability", "B", "N", "D", "wanted", "dtype", "path"),
    [
        (90, 4096, 4096, 2048, 64, "float32", "tiles"),
        (90, 4096, 4096, 2048, 64, "bfloat16", "tiles"),
        (90, 4096, 4096, 2048, 64, "float64", "direct"),
        (90, 4096, 4096, 2048, 1023, "float32", "tiles"),
        (90, 4096, 4096, 2048, 1024, "float32", "direct"),  # a quarter of the references
        (90, 1024, 1024, 128, 64, "float32", "direct"),  # tiny
        (90, 1024, 1024, 129, 64, "float32", "tiles"),
        (80, 131072, 131072, 512, 64, "float16", "tiles"),
        (0, 128, 128, 128, 16, "float32", "direct"),
        (0, 128, 128, 129, 16, "float32", "tiles"),
    ],
)
def test_every_pair_where_tiles_would_not_pay(capability, B, N, D, wanted, dtype, path) -> None:
    assert choose(Shape(B, N, D, wanted, dtype, capability)).path == path


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("capability", [0, 80, 90])
def test_sizes_hold_the_problem(capability: int) -> None:
    for shape in SHAPES:
        shape = dataclasses.replace(shape, capability=capability)
        C = setup_for(shape, choose(shape))
        size = sizes(shape, C)
        assert 1 <= size.panel <= shape.B, named(shape)
        assert 1 <= size.first_step <= size.chunk <= shape.N, named(shape)
        assert C.cap >= shape.wanted, named(shape)
        assert size.slab >= shape.N, f"{named(shape)}: no room for the pairs of a row that falls back"
        assert size.columns % C.tile_d == 0, named(shape)
        assert 0 <= size.columns - shape.D < C.tile_d, named(shape)
        if C.path == "tiles" and C.append:
            assert size.first_step <= C.cap, f"{named(shape)}: more references than room, before there is a threshold"
        else:
            assert size.slab >= size.panel * shape.N, named(shape)
            assert C.once, f"{named(shape)}: every key needs its reference packed"
        assert max(size.slab, size.panel * C.cap, shape.N * 2) < 1 << 31, f"{named(shape)}: addressed by 32 bits"


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("B", "N", "D", "k"),
    [
        (131072, 131072, 512, 64),
        (4096, 4096, 2048, 64),
        (32768, 32768, 768, 64),
        (8192, 8192, 2048, 512),
        (256, 131072, 2048, 64),
        (131072, 256, 32, 64),
        (300, 1 << 20, 128, 64),
        (256, 131072, 65536, 64),
    ],
)
def test_workspace_is_what_the_memory_goal_allows(capability, dtype, B, N, D, k) -> None:
    """64 MB, and 16 bytes for every neighbour and row: no [B, N] matrix, and no packed copy of a large one."""
    from ldreg_kernels.kernels import triton_plan

    shape = Shape(B, N, D, k, str(dtype).removeprefix("torch."), capability)
    taken = triton_plan.plan(shape, choose(shape), 132, k=k, same=B == N).nbytes
    assert taken > B * 4
    assert taken <= WORKSPACE_MB * 1e6 + 16 * B * k + 16 * (B + N), f"{taken / 1e6:.1f} MB"


# ------------------------------------------------------------------------------------------------- availability


def python(script: str, **environment: str) -> list[str]:
    environment = {**os.environ, **environment}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


ASK = """
import ldreg_kernels as ldk, torch
print(ldk.backends()["triton"])
try:
    ldk.knn(torch.zeros(4, 2), k=1, backend="triton")
except RuntimeError as error:
    print(error)
print(ldk.knn(torch.zeros(4, 2), k=1).distances.sum().item())
"""


def test_without_triton() -> None:
    reason, error, others = python("import sys; sys.modules['triton'] = None\n" + ASK)
    assert reason.startswith("Triton could not be imported")
    assert error == f"backend 'triton' is unavailable: {reason}"
    assert others == "0.0"


@needs_triton
def test_without_a_device() -> None:
    reason, error, others = python(ASK, TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert reason.startswith("no CUDA device; TRITON_INTERPRET=1")
    assert error == f"backend 'triton' is unavailable: {reason}"
    assert others == "0.0"


@needs_triton
def test_on_a_device_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "interpreting", lambda: False)
    monkeypatch.setattr(triton_backend, "_no_device", triton_backend._no_device.__wrapped__)
    monkeypatch.setattr(triton_backend, "_capability", {0: 75, 1: 90}.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert triton_backend.unavailable_reason() == "compute capability 7.5 is below 8.0"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # one of them will do
    assert triton_backend.unavailable_reason() is None


@needs_triton
def test_more_neighbours_than_it_is_made_for_are_refused() -> None:
    x = torch.zeros(triton_backend.LARGEST_K + 2, 1)
    with pytest.raises(ValueError, match=r"^k must be at most 8192 on backend 'triton' \(track included\), got 8193$"):
        triton_backend.knn(Problem(x, x, triton_backend.LARGEST_K + 1, 0))
