"""Where low-precision selection, float32's range and the memory bound are under strain.

Cases found by trying to break the kernels; each was once wrong or slow.
Truth is float64; the instruction sets of the CPU build are run one by one in subprocesses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
import tolerances
import torch

import ldreg_kernels as ldk
from ldreg_kernels.kernels import native


def absorbed(columns: int) -> torch.Tensor:
    """Neighbours that differ in features 4096 times smaller than the one they share, and decoys without those features.

    A dot product summed in one go absorbs the small features once the large one is in the sum.
    """
    near = torch.full((32, columns), 2.0**-12)
    near[:, 0] = 1
    near[range(32), range(1, 33)] *= -1
    decoys = torch.zeros(32, columns)
    decoys[:, 0] = 1
    rows = torch.cat([near, decoys])
    return torch.cat([rows, -rows])  # centred as it is


@pytest.mark.parametrize("columns", [512, 2048, 8192])
def test_small_features_beside_a_large_one(backend, columns: int) -> None:
    x = absorbed(columns)
    found = backend.knn(x, k=8).distances.double()
    torch.testing.assert_close(
        found, ldk.knn(x.double(), k=8, backend="reference").distances, rtol=tolerances.DISTANCE, atol=0
    )


@pytest.mark.parametrize("scale", [1e-18, 1e15, 1e16, 1e17, 1e18])
@pytest.mark.parametrize(("rows", "k"), [(201, 41), (201, 150), (333, 20)])
def test_scales_with_rows_that_fill_no_vector(backend, rows: int, k: int, scale: float) -> None:
    x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)) * scale
    found = backend.knn(x, k=k)
    assert int(found.indices.max()) < rows
    truth = ldk.knn(x.double(), k=k, backend="reference").distances
    torch.testing.assert_close(found.distances.double(), truth, rtol=tolerances.DISTANCE, atol=0)


@pytest.mark.parametrize("scale", [1e-100, 1e40, 1e100])
def test_float64_beyond_the_range_of_float32(backend, scale: float) -> None:
    x = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(backend.lid(x * scale, k=8), backend.lid(x, k=8))


def test_gradient_beside_a_tiny_distance(backend) -> None:
    """w_j / d_j leaves float32's range, the gradient does not."""
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    x[0] = 1e-22 * torch.tensor([1.0, 2.0, 3.0, 4.0])
    x[1] = 0
    grads = []
    for features, name in ((backend.put(x), backend.name), (x.double(), "reference")):
        features = features.clone().requires_grad_()
        value = ldk.ldreg_loss(features, k=10, estimator="hill", reduction="sum", backend=name)
        grads.append(torch.autograd.grad(value, features)[0][0].double().cpu())
    torch.testing.assert_close(grads[0], grads[1], rtol=tolerances.GRADIENT, atol=0)


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["identical", "half zero"])
def test_collapsed_batch_is_not_slow(kind: str) -> None:
    """A dead encoder must not stall training: within ten times the time of an ordinary batch."""
    ordinary = torch.randn(2048, 256, generator=torch.Generator().manual_seed(0))
    collapsed = torch.ones_like(ordinary) if kind == "identical" else ordinary.clone()
    collapsed[::2] = 0 if kind == "half zero" else collapsed[0]

    def best(x: torch.Tensor) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            ldk.ldreg_loss(x, k=64, backend="cpu")
            times.append(time.process_time() - start)
        return min(times)

    assert best(collapsed) < 10 * best(ordinary)


ISAS = ["avx512bf16", "avx512", "avx2", "neonbf16", "neon", "portable"]


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    """The neighbours, LIDs and gradients of each compiled set this machine executes, in a process of its own."""
    script = """
import sys, numpy, torch, ldreg_kernels as ldk
DISTANCE = 1e-6  # tolerances.py has the reason; it is not on this process's path
from ldreg_kernels.kernels import native
try:
    chosen = native.isa()
except ValueError:
    print("not executable here"); sys.exit(0)
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for rows, columns, k in ((67, 1, 5), (250, 33, 60), (700, 64, 16), (901, 300, 24)):
        x = torch.randn(rows, columns).to(dtype)
        exact = x.double()
        a, b = ldk.knn(x, k=k, backend="cpu"), ldk.knn(exact, k=k, backend="reference")
        torch.testing.assert_close(a.distances.double(), b.distances, rtol=DISTANCE, atol=0)
        own = (exact[:, None] - exact[a.indices]).norm(dim=2)  # of the rows it returned
        torch.testing.assert_close(a.distances.double(), own, rtol=DISTANCE, atol=0)
        p, q = x.clone().requires_grad_(), exact.clone().requires_grad_()
        (g,) = torch.autograd.grad(ldk.ldreg_loss(p, k=k, backend="cpu"), p)
        (h,) = torch.autograd.grad(ldk.ldreg_loss(q, k=k, backend="reference"), q)
        assert (g.double() - h).norm() < (1e-4 if dtype in (torch.float32, torch.float64) else 1e-2) * h.norm()
    integers = torch.randint(-15, 16, (300, 2048)).to(dtype)
    d = ldk.knn(integers, k=9, backend="cpu").distances.double()
    wide = integers.to(torch.int64)
    squares = (wide.square().sum(1)[:, None] + wide.square().sum(1) - 2 * wide @ wide.T).fill_diagonal_(2**60)
    nearest = squares.sort(dim=1).values[:, :9].double().numpy()
    expected = torch.from_numpy(numpy.sqrt(nearest))  # torch.sqrt is not always correctly rounded
    assert torch.equal(d, expected if dtype == torch.float64 else expected.float().double())
print(chosen)
"""
    environment = {**os.environ, "LDREG_CPU_ISA": isa}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    if "not executable" in run.stdout:
        pytest.skip(f"this machine does not execute {isa}")
    assert run.stdout.strip() == isa


def test_unknown_instruction_set_is_refused() -> None:
    script = "from ldreg_kernels.kernels import native; native.isa()"
    environment = {**os.environ, "LDREG_CPU_ISA": "mmx"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert re.search(r"LDREG_CPU_ISA must name .* \((\w+, )*portable\), got 'mmx'", run.stderr)
    assert native.isa() in ISAS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "references", "columns", "limit_mb"),
    [
        (16384, None, 512, 150),  # the reference takes 5 GB; inputs and the returned gradient are 33 MB each
        (256, 131072, 32, 80),  # one B x N matrix of float32 would be 134 MB
        (131072, 256, 32, 120),  # a gradient of 17 MB twice, and B k neighbours are never held
    ],
)
def test_peak_memory(rows: int, references: int | None, columns: int, limit_mb: int) -> None:
    """Loss with gradient adds at most so much to the resident memory of its inputs."""
    script = f"""
import torch, ldreg_kernels as ldk
from pathlib import Path
torch.set_num_threads(2)
def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
def step(x, y):
    x = x.requires_grad_()
    ldk.ldreg_loss(x, y, k=64, backend="cpu").backward()
step(torch.randn(200, 8), None)
x = torch.randn({rows}, {columns})
y = None if {references} is None else torch.randn({references} or 1, {columns})
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
step(x, y)
print(status("VmHWM") - before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= limit_mb


def test_more_rows_than_an_index_holds() -> None:
    y = torch.zeros(1, 1).expand(2**31, 1)  # one number of memory
    with pytest.raises(ValueError, match=r"fewer than 2\^31 rows each on the CPU backend, got 2147483648"):
        ldk.knn(torch.zeros(4, 1), y, k=1, backend="cpu")
