"""setup.py where names are unusual: checkout, temporary folder, pybind11's folder, and what else is on PYTHONPATH.

The package's own setup.py and csrc/toolchain.py build small stand-ins for its modules, in the stand-in's own checkout:
what is at stake is how commands, build.ninja and dependencies are written down, and not the kernels' minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = 'two words, it\'s "$HOME" #1 `(p)a&r;e|n*t?h` ünïcode ☃'
# As little as Python can be told of the names of files.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

BINDINGS = """\
#include <Python.h>
#include <pybind11/header.h>
int answer();
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "NAME", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
extern "C" __attribute__((visibility("default"))) PyObject* PyInit_NAME() {
  PyObject* m = PyModule_Create(&module);
  PyModule_AddIntConstant(m, "answer", answer());
  PyModule_AddIntConstant(m, "header", HEADER);
  return m;
}
"""
SETTINGS = ("LDREG_BUILD_CPU", "LDREG_BUILD_CUDA", "LDREG_CUDA_ARCHS", "CXX", "CXXFLAGS", "LDFLAGS", "NVCC_CCBIN")


def checkout(folder: Path, cuda: bool = False) -> Path:
    """A checkout of setup.py and stand-ins for the sources."""
    if not (ROOT / "setup.py").exists():
        pytest.skip(f"no source tree at {ROOT}")
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    for name in ("csrc/cpu", "ldreg_kernels", *(["csrc/cuda"] if cuda else [])):
        (folder / name).mkdir(parents=True)
    for name in (
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "csrc/toolchain.py",
        "ldreg_kernels/__init__.py",
    ):
        shutil.copy(ROOT / name, folder / name)
    (folder / "csrc/number.h").write_text("#define NUMBER 41\n")
    source = '#include "number.h"\nint answer() { return NUMBER + 1; }\n'
    for kind, suffix in (("cpu", "cpp"), ("cuda", "cu"))[: 1 + cuda]:
        (folder / f"csrc/bindings_{kind}.cpp").write_text(BINDINGS.replace("NAME", f"_{kind}"))
        (folder / f"csrc/{kind}/answer.{suffix}").write_text(source)
    return folder


def libraries(folder: Path, header: int = 7) -> Path:
    """A folder for PYTHONPATH with a pybind11 that has one header."""
    (folder / "pybind11/include/pybind11").mkdir(parents=True)
    (folder / "pybind11/include/pybind11/header.h").write_text(f"#define HEADER {header}\n")
    get_include = "from pathlib import Path\ndef get_include(): return str(Path(__file__).parent / 'include')\n"
    (folder / "pybind11/__init__.py").write_text(get_include)
    return folder


def build(source: Path, *arguments: str, pythonpath: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    env |= {"PYTHONPATH": pythonpath, "LDREG_BUILD_CUDA": "0", **settings}
    command = [sys.executable, "setup.py", "-v", *(arguments or ("build_ext", "--inplace"))]
    return subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, timeout=120)


def constants(source: Path, kind: str = "cpu") -> str:
    """What the built module holds, from a process that imports nothing else."""
    (module,) = (source / "ldreg_kernels").glob(f"_{kind}.*")
    program = (
        "import sys, importlib.machinery as m, importlib.util as u\n"
        f"loader = m.ExtensionFileLoader('_{kind}', sys.argv[1])\n"
        f"found = u.module_from_spec(u.spec_from_loader('_{kind}', loader))\n"
        "loader.exec_module(found)\n"
        "print(found.answer, found.header)"
    )
    return subprocess.run([sys.executable, "-c", program, module], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", [EVERYTHING, "co:lon"])
def test_builds_and_builds_again_only_what_changed(tmp_path: Path, name: str) -> None:
    source = checkout(tmp_path / name / "checkout")
    temporary = tmp_path / name / "tmp"
    temporary.mkdir()
    # A PYTHONPATH cannot hold a colon: there, pybind11 is elsewhere.
    installed = libraries(tmp_path / name.replace(":", "") / "site-packages")
    settings = {"pythonpath": str(installed), "TMPDIR": str(temporary), **ASCII}
    first = build(source, **settings)
    assert first.returncode == 0, first.stdout + first.stderr
    assert constants(source) == "42 7\n"
    assert "no work to do" in build(source, **settings).stdout
    # The compiler's list of headers was understood.
    (source / "csrc/number.h").write_text("#define NUMBER 22\n")
    again = build(source, **settings)
    assert "[2/2]" in again.stdout, again.stdout
    assert constants(source) == "23 7\n"


def test_cuda_too(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    source = checkout(tmp_path / EVERYTHING / "checkout", cuda=True)
    compiler = tmp_path / EVERYTHING / "tools/g++"
    launcher = tmp_path / EVERYTHING / "tools/ccache"
    temporary = tmp_path / EVERYTHING / "tmp"
    for folder in (compiler.parent, temporary):
        folder.mkdir()
    compiler.write_text('#!/bin/sh\nexec /usr/bin/env c++ "$@"\n')
    launcher.write_text('#!/bin/sh\necho "$1" >> "$(dirname "$0")/log"\nexec "$@"\n')
    for path in (compiler, launcher):
        path.chmod(0o755)
    built = build(
        source,
        pythonpath=str(libraries(tmp_path / EVERYTHING / "site-packages")),
        TMPDIR=str(temporary),
        LDREG_BUILD_CUDA="1",
        LDREG_CUDA_ARCHS="90",
        CXX=" ".join(map(shell_quoted, (str(launcher), str(compiler), "-DFLAG='1,2'"))),
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert constants(source, "cuda") == constants(source, "cpu") == "42 7\n"
    assert str(compiler) in (compiler.parent / "log").read_text()


def shell_quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


STRAYS = {
    "toolchain.py": "raise SystemExit('the wrong toolchain')\n",
    "ninja.py": "program = 'not the build tool'\n",
    "utils.py": "raise SystemExit('the wrong utils')\n",
    "utils/__init__.py": "raise SystemExit('the wrong utils')\n",
    "cpu.py": "raise SystemExit('the wrong cpu')\n",
    "csrc/__init__.py": "",
    "ldreg_kernels/__init__.py": "raise SystemExit('another checkout')\n",
}


@pytest.mark.parametrize("entry", [":{strays}", "relative::/no/such/folder"])
def test_other_modules_on_pythonpath_are_not_ours(tmp_path: Path, entry: str) -> None:
    source, strays = checkout(tmp_path / "checkout"), tmp_path / "strays"
    for folder in (strays, source / "relative"):  # the second is meant from where setup.py runs
        for name, text in STRAYS.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    pythonpath = f"{entry.format(strays=strays)}:{libraries(tmp_path / 'site-packages')}"
    built = build(source, pythonpath=pythonpath)
    assert built.returncode == 0, built.stdout + built.stderr
    assert constants(source) == "42 7\n"


def test_without_a_compiler_it_stops_with_words_and_goes_on_when_told(tmp_path: Path) -> None:
    source = checkout(tmp_path / "checkout")
    empty = tmp_path / "bin"
    empty.mkdir()
    (empty / "c++").write_text("not executable")
    options = {"PATH": str(empty), "pythonpath": str(libraries(tmp_path / "site-packages"))}
    failed = build(source, **options)
    assert failed.returncode == 1
    assert "LDREG_BUILD_CPU=0" in failed.stderr
    assert "Traceback" not in failed.stderr

    assert build(source, pythonpath=options["pythonpath"]).returncode == 0
    assert list((source / "ldreg_kernels").glob("_cpu.*"))
    told = build(source, **options, LDREG_BUILD_CPU="0")
    assert told.returncode == 0, told.stderr
    assert "building without the CPU kernels (LDREG_BUILD_CPU=0)" in told.stdout
    assert not list((source / "ldreg_kernels").glob("_cpu.*")), "what an earlier build left must not be loaded"
