"""What the hardware could do: rates of a large matrix product and a large copy, and the floors they make.

    gemm floor    2 B N D / rate of the fastest matrix product, bf16 as a rule: every pair has to be looked at once
    gather floor  B k D bytes / rate of a copy: k rows are read again for the exact distances and the gradient

Both are optimistic on purpose: bf16 even where the features are float32, no selection, no second look. Caches and the
symmetry of y = x can beat them; the tables say when they do. See kernels.md, section 1, for the same arithmetic.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .cases import DTYPES, Case
from .searches import float32_products

SIZES = {"cpu": (2048, 2**28), "cuda": (8192, 2**32)}  # rows of the square matrices, bytes copied
LONG_SECONDS = 2.0  # without bf16 instructions a processor takes 20 s for that product
REPETITIONS = 5
WARM_UP_SECONDS = {"cpu": 0.1, "cuda": 0.5}  # an idle GPU's clock is a sixth of a busy one's


@dataclass(frozen=True)
class Rates:
    """Measured on this machine in this run."""

    products: dict[str, float]  # "float32", "tf32" on CUDA, "bfloat16": GFLOP/s
    copy: float  # GB/s, bytes read and bytes written both counted

    def floors_ms(self, case: Case) -> tuple[float, float]:
        """(gemm floor, gather floor) of a case in milliseconds."""
        gemm = 2 * case.B * case.N * case.D / (max(self.products.values()) * 1e9)
        gather = case.B * case.k_max * case.D * DTYPES[case.dtype].itemsize / (self.copy * 1e9)
        return 1e3 * gemm, 1e3 * gather


def measure_rates(device: torch.device) -> Rates:
    """Rates of `torch.mm` per precision and of a copy within the device's memory."""
    size, copied = SIZES[device.type]
    products = {}
    for precision in ("float32", "tf32", "bfloat16") if device.type == "cuda" else ("float32", "bfloat16"):
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        with float32_products(precision):
            products[precision] = _product_rate(size, dtype, device)
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(products, 2 * copied / _median_seconds(functools.partial(target.copy_, source), device) / 1e9)


def _product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of a product of square matrices; of smaller ones where these would take too long."""
    rate = 0.0
    for rows in (size // 4, size) if device.type == "cpu" else (size,):
        if rate and 2 * rows**3 / (1e9 * rate) > LONG_SECONDS:
            break
        a, b = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
        rate = 2 * rows**3 / _median_seconds(functools.partial(torch.mm, a, b), device) / 1e9
    return rate


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_UP_SECONDS[device.type]:
        once()
    return statistics.median(once() for _ in range(REPETITIONS))
