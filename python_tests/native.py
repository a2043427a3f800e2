"""C++ that the tests compile themselves: the CPU kernels for other processors, and for vectors of another width.

Objects are kept in build/native and compiled again when a source or header is newer. `arm_objects` is what
csrc/toolchain.py would build on an ARM machine, instruction set by instruction set; `link` makes a program of objects
and python_tests/native/check.cpp.
"""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "python_tests/native"
FOLDER = ROOT / "build/native"
CROSS = "aarch64-linux-gnu-g++"
ARM_SETS = ("portable", "neon", "neonbf16")


def toolchain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "csrc/toolchain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing(*programs: str) -> str | None:
    """What to install, or None."""
    absent = [name for name in programs if shutil.which(name) is None]
    packages = {CROSS: "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user", "objdump": "binutils"}
    needed = [packages.get(name, name) for name in absent]
    return f"not installed: {', '.join(absent)} (Debian: {', '.join(needed)})" if absent else None


def isa_object(isa: str, compiler: Sequence[str], x86: bool) -> Path:
    """csrc/cpu/isa_<isa>.cpp as the build compiles it, for the processor that the compiler compiles for."""
    source = ROOT / f"csrc/cpu/isa_{isa}.cpp"
    build = toolchain()
    return compile_object(source, compiler, [*build.CXX_FLAGS, *build.isa_flags(source)], x86)


def compile_object(source: Path, compiler: Sequence[str], flags: Sequence[str], x86: bool = False) -> Path:
    command = [*compiler, *flags, f"-DLDREG_X86={int(x86)}", f"-I{ROOT / 'csrc'}", "-c", str(source)]
    # Two commands for one source have two objects; the names are for people.
    target = FOLDER / f"{source.stem}-{Path(compiler[0]).name}-{sum(' '.join(command).encode()) % 9973}.o"
    with _locked(target):
        headers = [*(ROOT / "csrc").rglob("*.h"), *HERE.glob("*.h"), source]
        if not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in headers):
            partial = target.with_suffix(".partial")
            _run([*command, "-o", str(partial)])
            partial.rename(target)
    return target


def link(program: Path, compiler: Sequence[str], kernels: Sequence[Path], x86: bool = False) -> Path:
    """check.cpp, what it needs of csrc/cpu, and the objects of instruction sets."""
    flags = ["-O2", *toolchain().CXX_FLAGS[1:]]
    plain = [HERE / "check.cpp", *(ROOT / f"csrc/cpu/{name}.cpp" for name in ("blocks", "choice", "parallel"))]
    objects = [compile_object(source, compiler, flags, x86) for source in plain]
    _run([*compiler, "-static", "-pthread", *map(str, [*objects, *kernels]), "-o", str(program)])
    return program


def _run(command: list[str]) -> None:
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, f"{' '.join(command)}\n{built.stderr}"
    assert not built.stderr, built.stderr  # warnings


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:  # test processes share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
