"""Whether a compiled module belongs to this copy of the package, and what to say if it is not there.

Several copies may be about: an installed one, a checkout that the current folder or PYTHONPATH puts before it, an
editable installation, whose import hook answers for every module that a checkout lacks. Python code and compiled code
of two copies must not meet. What this file does not do: import the modules.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).absolute().parents[1]  # links are kept: an editable installation may be a folder of them


def foreign(module: ModuleType) -> bool:
    """Whether the module was found in another folder than this package."""
    file = module.__file__
    return file is not None and not _same(Path(file).parent, PACKAGE)


def why_missing(name: str, found: ModuleType | ImportError) -> str:
    """Why `name` ("_cpu") cannot be used: importing it failed, or brought another copy's."""
    if isinstance(found, ImportError) and _has(PACKAGE, name):
        return f"{name} in {PACKAGE} could not be loaded ({found}); reinstall with `pip install .`"
    text = f"{name} is not in {PACKAGE}, where this package was imported from: "
    if others := sorted(path.name for path in PACKAGE.glob(f"{name}.*.so")):
        return text + f"there is {others[0]}, built for another Python; install again with this one"
    if not (PACKAGE.parent / "csrc").is_dir():
        return text + "it was installed without (LDREG_BUILD_CPU=0); `pip install .` with a C++ compiler brings it"
    text += "that is a checkout, not built; `pip install .` or `python setup.py build_ext --inplace` builds it"
    return text + "".join(f". {package} has it, but {PACKAGE.parent} comes first" for package in _built(name, found))


def _built(name: str, found: ModuleType | ImportError) -> list[Path]:
    """The copy of the package that was probably meant, if there is one."""
    packages = [Path(entry).absolute() / "ldreg_kernels" for entry in sys.path]
    if isinstance(found, ModuleType) and found.__file__ is not None:
        packages.insert(0, Path(found.__file__).parent)
    return [path for path in packages if not _same(path, PACKAGE) and _has(path, name)][:1]


def _has(package: Path, name: str) -> bool:
    return any(os.path.exists(package / f"{name}{suffix}") for suffix in EXTENSION_SUFFIXES)


def _same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))
