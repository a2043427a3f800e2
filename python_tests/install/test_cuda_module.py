"""ldreg_kernels._cuda: imports without a driver, says why it cannot run, has the reference's formulas."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys

import pytest
import torch

from ldreg_kernels.kernels import reference
from ldreg_kernels.kernels.contract import ESTIMATORS

pytest.importorskip("ldreg_kernels._cuda", reason="built without nvcc: there is no CUDA module", exc_type=ImportError)


def test_knows_what_it_was_compiled_for() -> None:
    cuda = importlib.import_module("ldreg_kernels._cuda")
    *native, ptx = cuda.architectures()
    assert native
    assert all(re.fullmatch(r"sm_\d+[af]?", name) for name in native)
    assert re.fullmatch(r"compute_\d+", ptx)
    assert cuda.runtime_version() >= 12000


def test_says_why_without_a_device_and_needs_no_torch() -> None:
    # CUDA_VISIBLE_DEVICES="" so that it holds on a machine with a GPU too. The module is loaded by its file:
    # nothing but Python and the C library may be needed for it.
    program = (
        "import sys, importlib.machinery as m, importlib.util as u\n"
        "loader = m.ExtensionFileLoader('_cuda', sys.argv[1])\n"
        "cuda = u.module_from_spec(u.spec_from_loader('_cuda', loader))\n"
        "loader.exec_module(cuda)\n"
        "print(cuda.unavailable_reason(), cuda.device_count(), 'torch' in sys.modules, sep='|')"
    )
    path = importlib.import_module("ldreg_kernels._cuda").__file__
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-c", program, path], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    reason, count, has_torch = result.stdout.strip().split("|")
    assert re.search("no NVIDIA driver is installed|no CUDA device is visible|needs CUDA", reason)
    assert (count, has_torch) == ("0", "False")


def test_the_doctor_names_architectures_and_the_reason() -> None:
    # In a process of its own: here, the module that runs on the CPU may have taken this one's place.
    cuda = importlib.import_module("ldreg_kernels._cuda")
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "ldreg_kernels.doctor"]
    lines = subprocess.run(command, env=env, capture_output=True, text=True).stdout.splitlines()
    module, backend = (next(x for x in lines if re.match(rf"  {name} +", x)) for name in ("_cuda", "cuda"))
    assert ", ".join(cuda.architectures()) in module
    reason = module.partition("cannot run here: ")[2]
    assert reason
    assert backend.endswith(f"missing: {reason}")
    assert cuda.simulated is False


def test_counts_agree_with_the_reason() -> None:
    cuda = importlib.import_module("ldreg_kernels._cuda")
    reason = cuda.unavailable_reason()
    assert (cuda.device_count() > 0) if reason is None else reason
    if reason == "no NVIDIA driver is installed":
        assert cuda.driver_version() == 0


def formulas(distances: torch.Tensor) -> torch.Tensor:
    """[6, 1 + k] by the reference: LID, then d lnLID / d d_j by autograd."""
    rows = []
    for estimator in ESTIMATORS:
        d = distances.clone()[None].requires_grad_()
        lid, _ = reference.estimate(d, estimator)
        (weights,) = torch.autograd.grad(lid.log().sum(), d)
        rows.append(torch.cat([lid.detach(), weights[0]]))
    return torch.stack(rows)


@pytest.mark.parametrize("on_device", [False, pytest.param(True, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("k", [3, 10, 64])
def test_formulas_are_those_of_the_reference(on_device: bool, k: int) -> None:
    cuda = importlib.import_module("ldreg_kernels._cuda")
    if on_device and cuda.unavailable_reason():
        pytest.skip(cuda.unavailable_reason())
    generator = torch.Generator().manual_seed(k)
    distances = torch.rand(k, dtype=torch.float64, generator=generator).add(0.1).sort().values
    found = torch.tensor(cuda.lid_formulas(distances.tolist(), on_device=on_device), dtype=torch.float64)
    # Both sum k terms in float64, in different orders, and k is at most 64.
    torch.testing.assert_close(found, formulas(distances), rtol=1e-12, atol=1e-12)


def test_formulas_need_two_distances() -> None:
    cuda = importlib.import_module("ldreg_kernels._cuda")
    with pytest.raises(ValueError, match="distances must hold at least 2 values, got 1"):
        cuda.lid_formulas([1.0], on_device=False)


def test_a_failed_cuda_call_is_an_exception_that_names_it() -> None:
    cuda = importlib.import_module("ldreg_kernels._cuda")
    if cuda.unavailable_reason() is None:
        pytest.skip("needs a machine where CUDA calls fail: one without a GPU")
    with pytest.raises(RuntimeError, match=r"cudaMalloc\(.*\) failed: cudaError"):
        cuda.lid_formulas([1.0, 2.0], on_device=True)
