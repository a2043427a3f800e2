"""What lives on after a call, and after the package is loaded again.

The kinds behind it: six losses of 2048 x 2048 features kept 192 MB alive; "already registered" in a notebook.
"""

import gc
import subprocess
import sys
import weakref

import cases
import pytest
import torch

import ldreg_kernels as ldk

CALLS = {
    "ldreg_loss": lambda x, **given: ldk.ldreg_loss(x, k=8, **given),
    "with stats": lambda x, **given: ldk.ldreg_loss(x, k=8, track=[("mle", 9)], return_stats=True, **given)[0],
    "lid": lambda x, **given: ldk.lid(x, k=8, **given).sum(),
}


class Encoder(torch.autograd.Function):
    """Features whose memory is a numpy array, which says when it is let go."""

    @staticmethod
    def forward(ctx, weight, array):
        return torch.from_numpy(array)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.sum(), None


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_features_are_let_go(backend, call):
    """Nothing but what backward needs lives: not the features, which a torch.func gradient needs no more either."""
    array = cases.features(40, 8).numpy()
    if backend.device.type != "cpu":
        pytest.skip("the features' memory is a numpy array")
    weight = torch.ones((), requires_grad=True)
    features = Encoder.apply(weight, array)
    value = call(features, backend=backend.name)
    alive = weakref.ref(array)
    del array, features
    gc.collect()
    assert alive() is None
    (gradient,) = torch.autograd.grad(value, weight)
    assert gradient.isfinite()
    assert gradient != 0


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_kept_passes_saved_tensor_hooks(backend, call):
    """A gradient as large as the features and a number or two for each row; hooks may move them elsewhere."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor.clone()

    x = backend.put(cases.features(40, 8)).requires_grad_()
    (expected,) = torch.autograd.grad(call(x, backend=backend.name), x)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = call(x, backend=backend.name)
    assert sorted(kept) == [40, 320]
    assert torch.equal(torch.autograd.grad(value, x)[0], expected)


def test_no_gradient_keeps_nothing():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        for call in CALLS.values():
            call(cases.features(40, 8))
    assert kept == []


# ------------------------------------------------------------------------------------------------- loaded again

RELOAD = """
import gc, importlib, sys, torch
import ldreg_kernels as first
x = torch.randn(30, 5, requires_grad=True)
def step(package):
    value, stats = package.ldreg_loss(x, k=6, track=[("mle", 4)], return_stats=True)
    (gradient,) = torch.autograd.grad(value + package.lid(x, k=5).log().mean(), x)
    return [value, gradient, stats.lid, package.knn(x, k=3).distances]
def same(package):
    return all(torch.equal(a, b) for a, b in zip(step(package), expected))
expected = step(first)
ops = [name for name in sys.modules if name.startswith("ldreg_kernels.") and sys.modules[name] is not None]
"""
WAYS = {
    "importlib.reload of every module": (
        "for name in ops:\n    if not name.endswith(('._cpu', '._cuda')): importlib.reload(sys.modules[name])\n"
        "assert same(importlib.reload(first))"
    ),
    "the module that registers": (
        "for name in ('registry', 'row_gradient', 'knn', 'ldreg', 'lid'):\n"
        "    importlib.reload(sys.modules[f'ldreg_kernels.ops.{name}'])\n"
        "assert same(first)"
    ),
    "dropped from sys.modules": (
        "for name in [*ops, 'ldreg_kernels']: del sys.modules[name]\n"
        "import ldreg_kernels as second\n"
        "assert second is not first and same(second) and same(first)\n"
        "del first; gc.collect()\n"
        "assert same(second)"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_package_can_be_loaded_again(way):
    ran = subprocess.run([sys.executable, "-c", RELOAD + WAYS[way]], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_another_version_in_the_same_process_is_refused():
    program = (
        "import torch\n"
        "library = torch.library.Library('ldreg', 'DEF')\n"
        "torch.ops.ldreg._ldreg_kernels_library = library\n"
        "library.define('knn(Tensor x, int k) -> Tensor')\n"
        "import ldreg_kernels"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "ldreg::knn is registered by another version of ldreg_kernels; restart Python" in ran.stderr
