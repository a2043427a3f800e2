"""The CUDA module without a GPU: csrc/cuda compiled for the host, every CUDA thread a fiber (python_tests/simt).

`load()` compiles what has changed and returns the module; `ldreg_kernels.kernels.cuda_backend` works with it as with
the real one, on CPU tensors. LDREG_SIMT_SEED in the environment asks for another order of threads.
"""

from __future__ import annotations

import fcntl
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "python_tests/simt"
FOLDER = ROOT / "build/simt"
SOURCES = [
    *sorted((ROOT / "csrc/cuda").glob("ldreg_*.cu")),
    HERE / "simt.cpp",
    HERE / "probe.cpp",
    ROOT / "csrc/bindings_cuda.cpp",
]


def unavailable_reason() -> str | None:
    """Why the module cannot be built here, or None."""
    if not compiler():
        return "no C++ compiler: neither $CXX, g++ nor c++ is there"
    return None if importlib.util.find_spec("pybind11") else "pybind11 is not installed"


@cache
def load() -> ModuleType:
    """The module, as built from the sources of this moment."""
    target = FOLDER / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:  # test processes share it
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build(target)
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(target))
    spec = importlib.util.spec_from_file_location("_cuda", target, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def compiler() -> list[str]:
    """The C++ compiler of everything the tests build: $CXX, g++ or c++; empty if there is none."""
    for command in (os.environ.get("CXX", ""), "g++", "c++"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    return []


def _build(target: Path) -> None:
    headers = [*(ROOT / "csrc").rglob("*.h"), *HERE.rglob("*.h"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in headers)
    objects = []
    stale = []
    for source in SOURCES:
        out = FOLDER / (source.name + ".o")
        objects.append(out)
        if not out.exists() or out.stat().st_mtime < max(newest, source.stat().st_mtime):
            stale.append((source, out))
    if not stale and target.exists():
        return
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda pair: _compile(*pair), stale))
    _run([*compiler(), "-shared", "-pthread", *map(str, objects), "-o", str(target)])


def _compile(source: Path, out: Path) -> None:
    import pybind11

    flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
    flags += ["-DLDREG_SIMULATED=1", "-DLDREG_HOPPER_BUILT=1", '-DLDREG_CUDA_ARCHS="simulated"', f"-I{ROOT / 'csrc'}"]
    flags += [f"-I{HERE / 'include'}", f"-I{HERE}"]
    flags += ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    unfinished = out.with_suffix(".partial")
    _run([*compiler(), *flags, "-x", "c++", "-c", str(source), "-o", str(unfinished)])
    unfinished.replace(out)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{result.stderr}")
    sys.stderr.write(result.stderr)
