"""Fixtures of the ops and kernels tests: one backend after another, memory poisoned, threads put back.

A test that takes `backend` runs once on every backend; one that cannot run here is skipped with the reason
the package gives. That the CPU backend is available is a test of its own (kernels/test_dispatch.py), so it
cannot be skipped silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():  # read when Triton is imported: kernels then run in its interpreter, on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import simulator

import ldreg_kernels as ldk
from ldreg_kernels.kernels import cuda_backend, triton_backend

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode asks for it on CUDA

# Derandomised: the same examples on every run, so that a red build can be repeated. Tests that check more set
# their own count.
settings.register_profile(
    "ldreg",
    derandomize=True,
    deadline=None,
    max_examples=30,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.differing_executors,
    ],
)
settings.load_profile("ldreg")

# CUDA threads as fibers, on the CPU. LDREG_TEST_SIMULATOR=0 is for who has no use for it: compiling it takes a minute.
_SIMULATE = not torch.cuda.is_available() and os.environ.get("LDREG_TEST_SIMULATOR") != "0"
if _SIMULATE and simulator.unavailable_reason() is None:
    cuda_backend.use(simulator.load())

_TRITON = "cpu" if triton_backend.interpreting() else "cuda"
_CUDA = "cpu" if cuda_backend.simulated() else "cuda"
_DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": _TRITON, "cuda": _CUDA}
_ON_GPU = [name for name, device in _DEVICE.items() if device == "cuda"]


@dataclass(frozen=True)
class Backend:
    """One backend under test: the public functions with `backend=name`, tensors moved to its device and
    results back.
    """

    name: str
    device: torch.device

    @property
    def emulated(self) -> bool:
        """Whether GPU kernels run on the CPU, interpreted or simulated: right, and a thousand times slower."""
        return self.device.type == "cpu" and self.name in ("triton", "cuda")

    def put(self, value):
        return value.to(self.device) if isinstance(value, torch.Tensor) else value

    def knn(self, x, y=None, *, self_index=None, **options):
        found = ldk.knn(self.put(x), self.put(y), self_index=self.put(self_index), backend=self.name, **options)
        return ldk.KNN(found.distances.cpu(), found.indices.cpu())

    def lid(self, x, y=None, *, self_index=None, **options):
        return ldk.lid(self.put(x), self.put(y), self_index=self.put(self_index), backend=self.name, **options).cpu()

    def loss(self, x, y=None, *, self_index=None, **options):
        """(R, LDRegStats), as with return_stats=True."""
        value, stats = ldk.ldreg_loss(
            self.put(x),
            self.put(y),
            self_index=self.put(self_index),
            backend=self.name,
            return_stats=True,
            **options,
        )
        tracked = {key: value.cpu() for key, value in stats.tracked.items()}
        copies = None if stats.copies is None else stats.copies.cpu()
        moved = {"lid": stats.lid.cpu(), "tracked": tracked, "degenerate": stats.degenerate.cpu(), "copies": copies}
        return value.cpu(), replace(stats, **moved)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Every torch.empty, here and below the dispatcher, comes filled with NaN or the largest integer."""
    filled, strict = (
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.are_deterministic_algorithms_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(strict)


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.gpu if name in _ON_GPU else ()) for name in _DEVICE])
def backend(request: pytest.FixtureRequest, poisoned_memory: None) -> Backend:
    """Every backend in turn; outputs are allocated poisoned, so that nothing can be left unwritten."""
    reason = ldk.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param!r} is unavailable: {reason}")
    return Backend(request.param, torch.device(_DEVICE[request.param]))


@pytest.fixture
def threads() -> Iterator[None]:
    """Put torch's thread count back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
