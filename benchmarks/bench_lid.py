"""LID without and with its gradient, for every estimator, through pytest-benchmark: `pytest benchmarks/bench_lid.py`.

Only this package's backends: no library estimates LID, and what a search costs elsewhere is in bench_knn.py. Answers
are judged against float64 here too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.kernels.contract import ESTIMATORS

from .gate import contract_share
from .pytest_support import DEVICE

B, D, K = 1024, 512, 64
BACKENDS = ("cuda", "triton") if DEVICE.type == "cuda" else ("cpu",)


@pytest.fixture(scope="module")
def features() -> Tensor:
    """[B, D]"""
    return torch.randn(B, D, generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("backend", BACKENDS)
def bench_lid(benchmark: Any, features: Tensor, backend: str, gradient: bool, estimator: str) -> None:
    reason = ldk.backends()[backend]
    if reason is not None:
        pytest.skip(reason)

    def call() -> Tensor:
        x = features.detach().requires_grad_(gradient)
        value = ldk.lid(x, k=K, estimator=estimator, backend=backend)
        if gradient:
            value.log().sum().backward()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return value.detach()

    truth = ldk.lid(features.double(), k=K, estimator=estimator, backend="reference")
    share = contract_share(call().double(), truth)
    assert share <= 1
    benchmark.group = f"lid ({B}, {B}, {D}, {K}) {'with gradient' if gradient else 'forward'}"
    benchmark.extra_info.update(estimator=estimator, backend=backend, shape=[B, D], k=K, error_of_allowed=share)
    benchmark.pedantic(call, rounds=10, warmup_rounds=1)
