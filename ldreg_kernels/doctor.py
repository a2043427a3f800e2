"""`ldreg doctor`: what is installed, which backends run, why others do not, and whether answers are right.

`report()` gathers, `render()` words it, `main()` prints and returns the exit code: 0 when the CPU backend and
every other available one agree with the float64 reference, 1 otherwise. Needs torch alone, so that
`python -m ldreg_kernels.doctor` works on a bare install. It measures no speed, and its self-test is a smoke
test: the guarantees are tested in python_tests. With `--gpu` it runs the check of doctor_gpu.py instead.
"""

from __future__ import annotations

import importlib
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import collect_env

import ldreg_kernels as ldk
from ldreg_kernels import doctor_gpu
from ldreg_kernels.kernels import dispatch, extension, native

# The promises of precision="exact" for float32 inputs, as the worst error over the allowed one.
DISTANCE_TOLERANCE = 1e-6  # relative
LID_TOLERANCE = 4e-6  # times 1 + LID: a relative distance error e moves LID by about (1 + LID) e
GRADIENT_TOLERANCE = 1e-5  # relative, in L2

ENVIRONMENT = (
    "torch_version",
    "cuda_compiled_version",
    "nvidia_driver_version",
    "nvidia_gpu_models",
    "os",
    "gcc_version",
)


@dataclass(frozen=True)
class BackendCheck:
    """One backend: why it is missing, or how its self-test went."""

    name: str
    missing: str | None
    worst_error: float | None = None  # largest error as a share of what is allowed: healthy up to 1
    failure: str | None = None  # the exception, when the self-test raised one

    @property
    def ok(self) -> bool:
        """Available, and its self-test passed."""
        return self.worst_error is not None and self.worst_error <= 1

    def __str__(self) -> str:
        """One line for the report."""
        if self.missing is not None:
            return f"missing: {self.missing}"
        if self.failure is not None:
            return f"FAILED: {self.failure}"
        verdict = "ok" if self.ok else "FAILED"
        return f"{verdict}, self-test error at {self.worst_error:.0%} of the tolerance"


@dataclass(frozen=True)
class DoctorReport:
    """Everything `ldreg doctor` prints."""

    version: str
    location: Path
    environment: dict[str, str]
    cpu_isa: str  # the instruction set the CPU kernels chose
    cuda_build: str  # what the CUDA module was compiled for
    backends: tuple[BackendCheck, ...]

    @property
    def ok(self) -> bool:
        """The CPU backend, which is always built, works; and so does everything else that claims to."""
        return all(check.ok or (check.missing is not None and check.name != "cpu") for check in self.backends)


def report() -> DoctorReport:
    """Looks at the installation and runs the self-test of every available backend."""
    return DoctorReport(
        version=ldk.__version__,
        location=Path(ldk.__file__).parent,
        environment=_environment(),
        cpu_isa=_cpu_isa(),
        cuda_build=_cuda_build(),
        backends=tuple(check(name, missing) for name, missing in ldk.backends().items()),
    )


def check(name: str, missing: str | None) -> BackendCheck:
    """Self-test of one backend, unless there is a reason it is missing."""
    if missing is not None:
        return BackendCheck(name, missing)
    try:
        return BackendCheck(name, None, worst_error=_self_test(name))
    except Exception as error:  # a broken kernel may raise anything; the others still get their turn
        return BackendCheck(name, None, failure=f"{type(error).__name__}: {error}")


def render(result: DoctorReport) -> str:
    """The report as text."""
    lines = [f"ldreg_kernels {result.version} in {result.location}", "", "Environment"]
    lines += [f"  {name:<22} {value}" for name, value in result.environment.items()]
    lines += ["", "Compiled modules"]
    lines += [f"  {'_cpu':<22} {result.cpu_isa}", f"  {'_cuda':<22} {result.cuda_build}"]
    lines += ["", "Backends"]
    lines += [f"  {check.name:<22} {check}" for check in result.backends]
    lines += ["", "Healthy." if result.ok else "NOT healthy: see the lines above."]
    return "\n".join(lines)


def main(*, gpu: bool = False) -> int:
    """Prints the report, or with `gpu` the answers of every GPU backend; returns the exit code."""
    if gpu:
        return doctor_gpu.check({**_environment(), "_cuda": _cuda_build()})
    result = report()
    print(render(result))
    return 0 if result.ok else 1


def _self_test(backend: str) -> float:
    """Largest error of knn, lid and the loss gradient against float64, each as a share of its tolerance."""
    device = dispatch.devices(backend)[0]
    k = 11
    x = torch.randn(97, 33, generator=torch.Generator().manual_seed(0))  # sizes that fill no tile evenly

    truth_distances = ldk.knn(x.double(), k=k, backend="reference").distances
    truth_lid = ldk.lid(x.double(), k=k, backend="reference")
    truth_gradient = _loss_gradient(x.double(), k, "reference")

    x = x.to(device)
    distances = ldk.knn(x, k=k, backend=backend).distances.double().cpu()
    lid = ldk.lid(x, k=k, backend=backend).double().cpu()
    gradient = _loss_gradient(x, k, backend).double().cpu()
    errors = (
        ((distances - truth_distances).abs() / truth_distances).max() / DISTANCE_TOLERANCE,
        ((lid - truth_lid).abs() / (1 + truth_lid)).max() / LID_TOLERANCE,
        (gradient - truth_gradient).norm() / truth_gradient.norm() / GRADIENT_TOLERANCE,
    )
    # Not Python's max(), which may skip a NaN: a NaN must not pass.
    return float(torch.stack(errors).amax())


def _loss_gradient(x: Tensor, k: int, backend: str) -> Tensor:
    x = x.clone().requires_grad_()
    ldk.ldreg_loss(x, k=k, backend=backend).backward()
    assert x.grad is not None
    return x.grad


def _environment() -> dict[str, str]:
    """The lines of torch's own collect_env that decide what runs here."""
    info = collect_env.get_env_info()
    found = {name: str(getattr(info, name, None)) for name in ENVIRONMENT}
    return {"python": platform.python_version(), **found, "torch threads": str(torch.get_num_threads())}


def _cpu_isa() -> str:
    if native.unavailable_reason() is not None:
        return "not usable: the backend `cpu` below says why"
    return f"instruction set {native.isa()}"


def _cuda_build() -> str:
    try:
        cuda = importlib.import_module("ldreg_kernels._cuda")
    except ModuleNotFoundError:
        return "not built: nvcc was not found, or LDREG_BUILD_CUDA was 0"
    except ImportError as error:
        return f"BROKEN: {error}"
    if extension.foreign(cuda):
        return f"not built here: {cuda.__file__} is another copy's"
    version = cuda.runtime_version()
    reason = cuda.unavailable_reason()
    state = "runs here" if reason is None else f"cannot run here: {reason}"
    return f"CUDA {version // 1000}.{version % 1000 // 10} for {', '.join(cuda.architectures())}; {state}"


if __name__ == "__main__":
    sys.exit(main(gpu=sys.argv[1:] == ["--gpu"]))
