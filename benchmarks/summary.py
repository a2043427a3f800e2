"""What gpu_gate.sh has to know of a machine before it begins: its GPU, and which tests it can import.

    python -m benchmarks.summary machine [--dry-run]   what the page says of it; exit code 2 without a GPU
    python -m benchmarks.summary tests                 pytest options that leave out what lacks a package

What the steps came to is judged in gate_page.py. Only `machine` needs torch. Nothing is run here.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "python_tests"

# ------------------------------------------------------------------------------------------------- machine


def machine(dry_run: bool) -> int:
    """Print facts, one "name: value" a line; without a usable GPU the reason, and 2."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: it is there, and a library of its is not
        print(f"gpu_gate: {sys.executable} has no torch ({error}). PYTHON names another one.", file=sys.stderr)
        return 2
    from benchmarks import records

    facts = {"commit": records.commit(), "versions": records.versions()}
    if not dry_run:
        try:
            torch.cuda.init()
        except (AssertionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            print(
                f"gpu_gate: there is no GPU that torch {torch.__version__} of {sys.executable} can use: {reason}\n"
                "gpu_gate: --dry-run goes through the same sections without one.",
                file=sys.stderr,
            )
            return 2
        major, minor = torch.cuda.get_device_capability()
        header = Path(sysconfig.get_path("include")) / "Python.h"
        facts |= {
            "GPU": torch.cuda.get_device_name(),
            "architecture": f"{major}{minor}{'a' if major >= 9 else ''}",  # "90a", as LDREG_CUDA_ARCHS has it
            "driver": records.driver() or "not found",
            # Triton compiles a small launcher for every kind of kernel, also where its kernels are cached.
            "C compiler": shutil.which("cc") or shutil.which("gcc") or "not found, which Triton needs",
            "Python.h": str(header) if header.exists() else f"{header} is missing, which Triton needs",
            "nvcc": first_match(["nvcc", "--version"], r"release (\S+),"),
            "compute-sanitizer": first_match(["compute-sanitizer", "--version"], r"Version (\S+)"),
        }
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    return 0


def first_match(command: list[str], pattern: str) -> str:
    """The first group of `pattern` in what a command prints."""
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "not found"
    found = re.search(pattern, text)
    return found.group(1) if found else "unknown"


# ------------------------------------------------------------------------------------------------- tests


def tests() -> int:
    """Print an --ignore for every test file that cannot be imported here, its reason on standard error.

    A missing package is no failure: extras of the trainer, or a library that answers are compared with. Any other
    error while pytest collects is one.
    """
    everywhere = [name for name in ("pytest", "pytest_timeout", "xdist") if not installed(name)]
    everywhere += missing_packages(TESTS / "conftest.py")
    if everywhere:
        print(f"tests: {', '.join(everywhere)} not installed", file=sys.stderr)
        return 1
    left_out: list[Path] = []
    # Whatever a conftest.py lacks, its whole folder lacks.
    for path in [*sorted(TESTS.rglob("conftest.py")), *sorted(TESTS.rglob("test_*.py"))]:
        if any(folder in left_out for folder in path.parents) or not (missing := missing_packages(path)):
            continue
        left_out.append(path.parent if path.name == "conftest.py" else path)
        name = left_out[-1].relative_to(ROOT)
        print(f"--ignore={name}")
        print(f"{name}: {', '.join(missing)} not installed", file=sys.stderr)
    return 0


def missing_packages(path: Path) -> list[str]:
    """Third-party packages that importing a file needs and this Python lacks; our own modules are followed."""
    missing, seen, queue = set(), set(), [path]
    while queue:
        file = queue.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imports(file):
            ours = own_files(name)
            queue += ours
            top = name.partition(".")[0]
            if not ours and not installed(top):
                missing.add(top)
    return sorted(missing)


@cache
def imports(file: Path) -> frozenset[str]:
    """Absolute names of what a file imports at its outermost level; "a.b" and "a.b.c" for `from a.b import c`."""
    return frozenset(_imports(file))


def _imports(file: Path) -> Iterator[str]:
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            stem = ".".join([*start, *([node.module] if node.module else [])])
            yield from (stem, *(f"{stem}.{alias.name}" for alias in node.names))


@cache
def own_files(name: str) -> list[Path]:
    """The files of this checkout that `import name` runs, packages on the way included."""
    parts = name.split(".")
    stems = [root.joinpath(*parts[: n + 1]) for root in (ROOT, TESTS) for n in range(len(parts))]
    candidates = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py")]
    return [file for file in candidates if file.exists()]


def installed(package: str) -> bool:
    """Whether a top-level module can be found."""
    return importlib.util.find_spec(package) is not None


def main(arguments: list[str] | None = None) -> int:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary", description="What machine gpu_gate.sh is on.")
    parser.add_argument("command", choices=("machine", "tests"))
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    return machine(options.dry_run) if options.command == "machine" else tests()


if __name__ == "__main__":
    sys.exit(main())
