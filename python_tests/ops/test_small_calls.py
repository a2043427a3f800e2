"""What a small call on the CPU costs beside the kernel, in things that can be counted: torch ops, allocations, Python
calls. The time itself is measured by benchmarks/host.py; each torch op there is a few microseconds.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import cases
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ldreg_kernels as ldk
from ldreg_kernels.kernels import native
from ldreg_kernels.ops import own_rows, row_gradient

pytestmark = pytest.mark.skipif(native.unavailable_reason() is not None, reason="the CPU extension is not built")
PACKAGE = str(Path(ldk.__file__).parent)


def gradient(value, x):
    return torch.autograd.grad(value, x, torch.ones_like(value))


FUNCTIONS = {
    "ldreg_loss": lambda x, y: gradient(ldk.ldreg_loss(x, y, k=8), x),
    "lid": lambda x, y: gradient(ldk.lid(x, y, k=8), x),
    "knn": lambda x, y: ldk.knn(x, y, k=8),
}


@pytest.fixture(params=FUNCTIONS)
def step(request):
    """One of the functions with its gradient, called already: what is looked up later is there."""
    x, y = cases.features(64, 128).requires_grad_(), cases.features(64, 128, seed=1)
    function = FUNCTIONS[request.param]
    own_rows._watches.clear()
    for _ in range(2):  # copies are counted in the first, and not before the tenth again
        function(x, y)
    return request.param, lambda: function(x, y)


class Ops(TorchDispatchMode):
    """Names of the ops that pass the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))


def test_one_launch_and_a_product_or_two(step):
    name, run = step
    with Ops() as ops:
        run()
    found = [op for op in ops.names if op not in ("aten.ones_like", "aten.detach")]  # the test's, and autograd's
    assert (
        found
        == {
            "ldreg_loss": ["ldreg.ldreg_value", "aten.mul.Tensor", "aten.mul.Tensor"],
            "lid": [
                *("ldreg.lid", "aten.gt.Scalar", "aten.mul.Tensor", "aten.scalar_tensor", "aten.where.self"),
                *("aten.unsqueeze", "aten.mul.Tensor"),
            ],
            "knn": ["ldreg.knn"],
        }[name]
    )


def test_no_allocation_that_nobody_asked_for(step):
    name, run = step
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    launch = next(event for event in profile.events() if event.name.startswith("ldreg::"))
    inside = Counter(child.name for child in launch.cpu_children)
    # Loss, coefficients, row gradients; LID, degenerate, tracked, row gradients; distances, indices.
    assert inside == {"aten::empty": {"ldreg_loss": 3, "lid": 4, "knn": 2}[name]}


def test_few_calls_of_python(step):
    name, run = step
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    assert 0 < count <= {"ldreg_loss": 37, "lid": 39, "knn": 23}[name]


def test_a_loss_without_statistics_tracks_nothing(monkeypatch):
    """It would be computed for nobody."""
    asked, ldreg = [], native.ldreg
    monkeypatch.setattr(native, "ldreg", lambda *given: asked.append(given) or ldreg(*given))
    x = cases.features(40, 8)
    plain = ldk.ldreg_loss(x, k=8)
    tracked = ldk.ldreg_loss(x, k=8, track=[("mle", 20)])
    value, stats = ldk.ldreg_loss(x, k=8, track=[("mle", 20)], return_stats=True)
    assert [(given[5], given[7]) for given in asked] == [((), False), ((), False), ((("mle", 20),), True)]
    assert torch.equal(plain, tracked)
    torch.testing.assert_close(value, plain)
    assert stats.tracked["mle", 20].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_large_and_small_gradients_are_scaled_alike(dtype, monkeypatch):
    """The way of the C++ backend, for large gradients, and torch's product give the same bits."""
    x, weight = cases.features(30, 5).to(dtype).requires_grad_(), cases.normal(30, 1)[:, 0]
    outcome = []
    for smallest in (row_gradient._LARGE, 0):
        monkeypatch.setattr(row_gradient, "_LARGE", smallest)
        with Ops() as ops:
            (found,) = torch.autograd.grad(
                ldk.ldreg_loss(x, k=6, reduction="none", backend="cpu"),
                x,
                weight.to(dtype=torch.float64 if dtype == torch.float64 else torch.float32),
            )
        assert ("ldreg.scale_rows" in ops.names) == (smallest == 0)
        outcome.append(found)
    assert outcome[0].dtype == dtype
    assert torch.equal(*outcome)
