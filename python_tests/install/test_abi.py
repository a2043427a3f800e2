"""One build serves every torch: the compiled modules ask for no symbol of torch and load no library of it.

torch-abi-audit looks at the undefined symbols of every shared object of the package and sorts them into torch's stable
interface, torch's internals and others; "no-torch" is the strongest of its verdicts. It would say the same of a file
that it cannot read, so torch's own library has to be found out by it, and readelf is asked as well, which also sees
libraries that are loaded for nothing. What the modules do need (glibc, libstdc++) is held to what a wheel may ask for.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ldreg_kernels as ldk

PACKAGE = Path(ldk.__file__).parent
MODULES = sorted(PACKAGE.glob("_c*.so"))
TORCH_LIBRARIES = Path(torch.__file__).parent / "lib"
# The newest that manylinux_2_34 offers; what a build asks for depends on where it is built, Debian 12 at the newest.
NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13)}
ALLOWED = re.compile(r"(lib(c|m|gcc_s|stdc\+\+|pthread|dl|rt)|ld-linux[\w-]*)\.so\.\d+")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")


def readelf(option: str, path: Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed: it comes with binutils, as compilers do")
    return subprocess.run(["readelf", "-W", option, str(path)], capture_output=True, text=True, check=True).stdout


def undefined(path: Path) -> list[str]:
    """Names of the dynamic symbols that others have to define."""
    return re.findall(r" UND (\S+)", readelf("--dyn-syms", path))


def needed(path: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", path))


def of_torch(symbols: list[str]) -> list[str]:
    """C++ names in at::, c10:: or torch:: (mangled: a length before the name), and torch's C interface."""
    return [s for s in symbols if re.match(r"_Z.*(2at|3c10|5torch)|(aoti_)?torch_|THP", s)]


def test_there_is_something_to_look_at() -> None:
    assert any(path.name.startswith("_cpu.") for path in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name.split(".")[0])
def test_no_symbol_and_no_library_of_torch(path: Path) -> None:
    symbols = undefined(path)
    assert any(name.startswith("Py") for name in symbols)  # they were read
    assert of_torch(symbols) == []
    libraries = needed(path)
    assert libraries
    assert [name for name in libraries if not ALLOWED.fullmatch(name)] == []


def test_torch_itself_would_be_found_out() -> None:
    library = TORCH_LIBRARIES / "libtorch_python.so"
    assert len(of_torch(undefined(library))) > 1000
    assert any(name.startswith(("libtorch", "libc10")) for name in needed(library))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name.split(".")[0])
def test_the_c_and_cpp_libraries_may_be_old(path: Path) -> None:
    if tuple(map(int, platform.libc_ver()[1].split("."))) > (2, 36):
        pytest.skip(f"built with glibc {platform.libc_ver()[1]}, newer than Debian 12's: it may ask for more")
    asked: dict[str, list[tuple[int, ...]]] = {}
    for name, version in re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI)_([\d.]+)", readelf("-V", path)):
        asked.setdefault(name, []).append(tuple(map(int, version.split("."))))
    assert set(asked) == set(NEWEST)
    for name, versions in asked.items():
        assert max(versions) <= NEWEST[name], f"{path.name} asks for {name} {max(versions)}"


def test_the_audit_sees_no_torch() -> None:
    if importlib.util.find_spec("torch_abi_audit") is None:
        pytest.skip("torch-abi-audit is not installed: pip install '.[test]', with Python 3.11 or newer")
    audit = importlib.import_module("torch_abi_audit")
    report = audit.inspect_package(str(PACKAGE))
    assert {path.name for path in MODULES} <= {module.path.name for module in report.extensions}
    assert report.error is None
    assert all(module.error is None for module in report.extensions)
    assert report.torch_verdict == "no-torch"
    control = audit.inspect_package(str(TORCH_LIBRARIES / "libtorch_python.so"))
    assert control.torch_verdict == "torch-unstable"
