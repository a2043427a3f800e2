"""What `import ldreg_kernels` may need and cost: torch alone, and under 0.3 s beyond it.

Every case runs in a fresh interpreter, where the modules in question are made unimportable first.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.alone

COMPILED = ("ldreg_kernels._cpu", "ldreg_kernels._cuda", "triton")
EXTRAS = (
    "transformers",
    "kornia",
    "accelerate",
    "sklearn",
    "safetensors",
    "typer",
    "rich",
    "pydantic",
    "matplotlib",
)
IMPORT_SECONDS = 0.3


def run(program: str, hidden: tuple[str, ...] = ()) -> str:
    """stdout of the program, with `hidden` unimportable as if never installed."""
    hide = (
        "import sys\n"
        "class Without:\n"
        "    def __init__(self, finder): self.finder = finder\n"
        "    def __getattr__(self, name): return getattr(self.finder, name)\n"
        "    def find_spec(self, name, *rest):\n"
        f"        return None if name in {hidden!r} else self.finder.find_spec(name, *rest)\n"
        "sys.meta_path[:] = map(Without, sys.meta_path)\n"
    )
    result = subprocess.run([sys.executable, "-c", hide + program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_imports_and_computes_without_extension_triton_or_extras() -> None:
    program = (
        "import torch, ldreg_kernels as ldk\n"
        "assert ldk.backends()['cpu'] and ldk.backends()['reference'] is None, ldk.backends()\n"
        "x = torch.randn(32, 4, requires_grad=True)\n"
        "ldk.ldreg_loss(x, k=8).backward()\n"
        "print(bool(x.grad.isfinite().all()))"
    )
    assert run(program, hidden=COMPILED + EXTRAS) == "True"


def test_a_backend_asked_for_by_name_says_why_it_is_missing() -> None:
    program = (
        "import torch, ldreg_kernels as ldk\n"
        "try: ldk.lid(torch.randn(32, 4), k=8, backend='cpu')\n"
        "except RuntimeError as error: print(ldk.backends()['cpu'] in str(error))"
    )
    assert run(program, hidden=COMPILED) == "True"


def test_importing_pulls_in_no_extra() -> None:
    before_and_after = "import sys, torch; old = set(sys.modules); import ldreg_kernels; "
    program = before_and_after + f"print(*sorted((set(sys.modules) - old) & set({EXTRAS!r})))"
    assert run(program) == ""


def test_import_time_beyond_torch() -> None:
    program = "import time, torch; t = time.perf_counter(); import ldreg_kernels; print(time.perf_counter() - t)"
    # The least of several: the first may read from a cold disk, any may share the processor.
    seconds = min(float(run(program)) for _ in range(3))
    assert seconds < IMPORT_SECONDS


def test_the_version_is_the_installed_one() -> None:
    from importlib import metadata

    import ldreg_kernels

    try:
        installed = metadata.version("ldreg_kernels")
    except metadata.PackageNotFoundError:
        pytest.skip("ldreg_kernels is on the path but not installed")
    assert ldreg_kernels.__version__ == installed
