"""`ldreg doctor`: its exit code, its words for a missing backend, and that a wrong kernel does not pass."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import ldreg_kernels as ldk
from ldreg_kernels import doctor


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """main() on a machine with the given backends, each with the given self-test error (or exception)."""

    def run(backends: dict[str, str | None], **errors: float | Exception) -> int:
        def self_test(name: str) -> float:
            error = errors.get(name, 0.5)
            if isinstance(error, Exception):
                raise error
            return error

        monkeypatch.setattr(ldk, "backends", lambda: backends)
        monkeypatch.setattr(doctor, "_self_test", self_test)
        monkeypatch.setattr(doctor, "_environment", lambda: {"torch_version": "any"})
        return doctor.main()

    return run


def test_healthy_without_a_gpu(pretend: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert pretend({"cuda": "no NVIDIA driver is installed", "cpu": None, "reference": None}) == 0
    out = capsys.readouterr().out
    assert "missing: no NVIDIA driver is installed" in out
    assert "ok, self-test error at 50% of the tolerance" in out
    assert out.endswith("Healthy.\n")


def test_the_cpu_backend_may_not_be_missing(pretend: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert pretend({"cpu": "the extension was not built", "reference": None}) == 1
    assert "NOT healthy" in capsys.readouterr().out


@pytest.mark.parametrize("error", [1.1, float("nan"), float("inf")])
def test_a_wrong_answer_is_a_failure(pretend: Callable[..., int], error: float) -> None:
    assert pretend({"cpu": None, "reference": None}, cpu=error) == 1


def test_a_crash_is_reported_and_the_rest_still_checked(
    pretend: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretend({"cuda": None, "cpu": None}, cuda=RuntimeError("illegal address")) == 1
    out = capsys.readouterr().out
    assert "FAILED: RuntimeError: illegal address" in out
    assert "ok, self-test" in out


def test_the_self_test_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ldk.lid
    assert doctor._self_test("reference") <= 1

    def slightly_off(x: torch.Tensor, **options: object) -> torch.Tensor:
        result = real(x, **options)
        return result if x.dtype == torch.float64 else result * (1 + 1e-4)

    monkeypatch.setattr(ldk, "lid", slightly_off)
    assert doctor._self_test("reference") > 1


def test_the_command_agrees_with_this_installation() -> None:
    result = subprocess.run([sys.executable, "-m", "ldreg_kernels.doctor"], capture_output=True, text=True)
    expected = 0 if ldk.backends()["cpu"] is None else 1
    assert result.returncode == expected, result.stdout + result.stderr
    assert result.stderr == ""
    for name in ("torch_version", "_cpu", "_cuda", *ldk.backends()):
        assert name in result.stdout


def test_a_build_without_cuda_says_so() -> None:
    program = (
        "import sys\n"
        "sys.modules['ldreg_kernels._cuda'] = None\n"  # importing it raises ModuleNotFoundError
        "import ldreg_kernels.doctor as doctor\n"
        "print(doctor.ldk.backends()['cuda'], doctor._cuda_build(), sep='|')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    backend, module = result.stdout.strip().split("|")
    assert backend == "the CUDA extension was not built: nvcc was not found, or LDREG_BUILD_CUDA was 0"
    assert module == "not built: nvcc was not found, or LDREG_BUILD_CUDA was 0"
