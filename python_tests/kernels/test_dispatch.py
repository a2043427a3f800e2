"""Which backend runs: availability, choice by name, refusal with a reason, and that nothing falls back
silently.
"""

import pytest
import torch

import ldreg_kernels as ldk
from ldreg_kernels.kernels import cuda_backend, dispatch, native, reference, triton_backend

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def test_the_cpu_backend_is_available():
    assert ldk.backends()["cpu"] is None, "the C++ extension is always built; see `ldreg doctor`"


def test_the_reference_is_available():
    assert ldk.backends()["reference"] is None


def test_backends_names_every_backend_with_a_reason_or_none():
    found = ldk.backends()
    assert set(found) == {"reference", "cpu", "triton", "cuda"}
    assert all(reason is None or (isinstance(reason, str) and reason) for reason in found.values())


@pytest.mark.parametrize("call", [ldk.knn, ldk.lid, ldk.ldreg_loss], ids=lambda f: f.__name__)
def test_an_unavailable_backend_raises_with_its_reason(call, monkeypatch):
    monkeypatch.setattr(reference, "unavailable_reason", lambda device=None: "the abacus is missing")
    with pytest.raises(RuntimeError, match="'reference' is unavailable: the abacus is missing"):
        call(X, k=4, backend="reference")


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_gpu_backend_refuses_cpu_tensors_or_says_why_it_is_missing(name, monkeypatch):
    if name == "triton" and triton_backend.interpreting():  # where CPU tensors are what it takes
        monkeypatch.setattr(triton_backend, "interpreting", lambda: False)
        triton_backend._no_device.cache_clear()
    if name == "cuda" and cuda_backend.simulated():
        monkeypatch.setattr(cuda_backend, "simulated", lambda: False)
        monkeypatch.setattr(cuda_backend, "unavailable_reason", cuda_backend.unavailable_reason.__wrapped__)
    reason = ldk.backends()[name]
    with pytest.raises((RuntimeError, ValueError)) as raised:
        ldk.knn(X, k=4, backend=name)
    expected = "got x on cpu" if reason is None else reason
    assert expected in str(raised.value)


def test_auto_takes_the_cpu_backend_for_cpu_tensors():
    assert dispatch.resolve("auto", torch.device("cpu")) is native


def test_auto_passes_over_an_unavailable_backend(monkeypatch):
    monkeypatch.setattr(native, "unavailable_reason", lambda device=None: "not today")
    assert dispatch.resolve("auto", torch.device("cpu")) is reference


def test_a_whole_step_without_the_extension(monkeypatch):
    """The package works where nothing was built: forward and backward by the reference."""
    monkeypatch.setattr(native, "unavailable_reason", lambda device=None: "not built")
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(ldk.ldreg_loss(x, k=4), x)
    (expected,) = torch.autograd.grad(ldk.ldreg_loss(x, k=4, backend="reference"), x)
    assert torch.equal(found, expected)


def test_auto_without_any_backend_raises():
    with pytest.raises(RuntimeError, match="no backend serves meta tensors"):
        dispatch.resolve("auto", torch.device("meta"))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"^backend must be one of auto, .*reference, got 'numpy'$"):
        dispatch.resolve("numpy", torch.device("cpu"))


def test_poison_is_really_there(poisoned_memory):
    assert torch.empty(5).isnan().all()
    assert X.new_empty(2, 2, dtype=torch.float64).isnan().all()
    assert (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


def test_auto_passes_over_a_backend_that_the_call_is_too_large_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA backend comes first, but Triton takes a larger k."""
    everywhere = {name: (module, ("meta",)) for name, (module, _) in dispatch._BACKENDS.items()}
    monkeypatch.setattr(dispatch, "_BACKENDS", everywhere)
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda name: None)
    monkeypatch.setattr(dispatch, "devices", lambda name: ("meta",))

    def chosen(**sizes: int) -> str:
        return dispatch.resolve("auto", torch.device("meta"), **sizes).__name__.rpartition(".")[2]

    assert chosen() == chosen(k=1024, columns=8192) == "cuda_backend"
    assert chosen(k=1025) == chosen(columns=8193) == "triton_backend"
    assert chosen(k=8193) == "native"
