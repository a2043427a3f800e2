"""What `import ldreg_kernels` may need and cost: torch alone, and under 0.3 s beyond it.

Every case runs in a fresh interpreter, where the modules in question are made unimportable first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import ldreg_kernels
from ldreg_kernels.kernels import extension, native

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


PACKAGE = Path(ldreg_kernels.__file__).resolve().parent


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="the CPU extension is not built")
@pytest.mark.parametrize("pythonpath", ["{built}", "../checkout::{built}"])
def test_an_unbuilt_checkout_that_shadows_the_installed_package_is_named(tmp_path: Path, pythonpath: str) -> None:
    """As the current folder, or as a relative or empty entry of PYTHONPATH. Nor does it take another copy's modules,
    which the import hook of an editable installation would give it.
    """
    checkout = tmp_path / "checkout"
    shutil.copytree(PACKAGE, checkout / "ldreg_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (checkout / "csrc").mkdir()
    hook = (
        "import sys, importlib.util as u\n"
        "class Hook:\n"
        "    def find_spec(name, *rest):\n"
        f"        for file in {[str(path) for path in PACKAGE.glob('_*.so')]!r}:\n"
        "            if name == 'ldreg_kernels.' + file.split('/')[-1].split('.')[0]:\n"
        "                return u.spec_from_file_location(name, file)\n"
        "sys.meta_path.insert(0, Hook)\n"
    )
    program = hook + "import ldreg_kernels as ldk; print(ldk.backends()['cpu'])"
    options = {"cwd": checkout, "env": {**os.environ, "PYTHONPATH": pythonpath.format(built=PACKAGE.parent)}}
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, **options).stdout
    assert said.startswith(f"_cpu is not in {checkout / 'ldreg_kernels'}, where this package was imported")
    assert "a checkout, not built" in said
    assert f"{PACKAGE} has it, but {checkout} comes first" in said
    if pythonpath == "{built}":
        doctor = subprocess.run(
            [sys.executable, "-c", hook + "from ldreg_kernels import doctor; sys.exit(doctor.main())"],
            capture_output=True,
            text=True,
            **options,
        )
        assert doctor.returncode == 1
        assert f"in {checkout / 'ldreg_kernels'}\n" in doctor.stdout
        assert said.strip() in doctor.stdout
        assert "instruction set" not in doctor.stdout


def test_why_an_installed_extension_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "PACKAGE", tmp_path)
    monkeypatch.setattr(sys, "path", ["/no/such/folder", *sys.path])
    error = ImportError("cannot import name '_cpu'")
    assert "was installed without (LDREG_BUILD_CPU=0); `pip install .` with a C++ compiler" in extension.why_missing(
        "_cpu", error
    )
    (tmp_path / "_cpu.cpython-27-x.so").touch()
    assert "there is _cpu.cpython-27-x.so, built for another Python" in extension.why_missing("_cpu", error)
    (tmp_path / f"_cpu{EXTENSION_SUFFIXES[0]}").touch()
    assert f"in {tmp_path} could not be loaded (cannot import" in extension.why_missing("_cpu", error)


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
