"""A machine that seems to have a GPU, for the tests of benchmarks/gpu_gate.sh.

Stand-ins for the interpreter, compute-sanitizer and ncu exit and print as a test says; benchmarks/gate_page.py, which
judges the steps, is the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
GATE = ROOT / "benchmarks" / "gpu_gate.sh"

NEEDED = [
    pytest.mark.alone,
    pytest.mark.skipif(not GATE.exists(), reason=f"no source tree: {GATE} does not exist"),
    pytest.mark.skipif(sys.platform != "linux", reason="the gate needs GNU timeout"),
]

# Interpreter: does as the variables say, but for our own programs about the run, which are the real ones.
PYTHON = f"""#!/usr/bin/env bash
reply() {{ [[ -z $1 ]] || eval "$1"; exit "${{2:-0}}"; }}
out=${{!#}}
case "$*" in
  *'benchmarks.summary machine'*) echo 'GPU: pretended'; echo 'architecture: 90a' ;;
  *'benchmarks.gpu_bundle install'*) reply "${{INSTALL-echo loaded}}" ;;
  *benchmarks.summary*|*benchmarks.gate_page*|*benchmarks.gpu_bundle*) exec {sys.executable} "$@" ;;
  *setup.py*) echo "built for $LDREG_CUDA_ARCHS, watchdog ${{LDREG_WATCHDOG-0}}"; reply "${{BUILD-}}" ;;
  *'-m pytest '*) [[ -z ${{REAL_TESTS-}} ]] || exec {sys.executable} "${{@/python_tests/$REAL_TESTS}}"
    echo "asked for $*"
    reply "${{TESTS-echo '3 passed, 7 skipped in 0.10s'}}" ;;
  *'benchmarks.sanitize --backend triton'*) reply "${{TRITON-echo 'not reached: triton: no kernels'; exit 3}}" ;;
  *benchmarks.sanitize*) reply "${{ANSWERS-echo '13 checked, 0 wrong'}}" ;;
  *'-m benchmarks.host'*) echo 'ldreg cuda: 20 us' ;;
  *'-m benchmarks '*) echo "asked for $*"; reply "${{BENCH-echo 'not reached: headline (8, 8)'}}" ;;
  '-c import torch'*) echo profiled ;;
  *) echo "unexpected: $*"; exit 9 ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
echo "$*"
case "$*" in *"--tool ${FAILING_TOOL:-none}"*) echo '========= ERROR SUMMARY: 3 errors'; exit 99 ;; esac
while [[ $1 == --* ]]; do shift 2; done
"$@"
"""
PROFILER = """#!/usr/bin/env bash
echo "$*"
[[ -z ${REFUSED-} ]] || { echo '==ERROR== Failed to initialize the profiler: LibraryNotLoaded'; exit 1; }
"""


@dataclass(frozen=True)
class Result:
    """How one run of the gate ended, and what it left behind."""

    code: int
    stdout: str
    stderr: str
    out: Path

    @property
    def summary(self) -> str:
        return (self.out / "summary.md").read_text()

    def log(self, section: str) -> str:
        return (self.out / f"{section}.log").read_text()


def gate(out: Path, *options: str, python: Path | str = sys.executable, **variables: str) -> Result:
    ran = subprocess.run(**arguments(out, *options, python=python, **variables), capture_output=True, text=True)
    return Result(ran.returncode, ran.stdout, ran.stderr, out)


def arguments(out: Path, *options: str, python: Path | str = sys.executable, **variables: str) -> dict[str, Any]:
    """Of subprocess.run. No GPU, also where there is one; and no bundle that somebody made here."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": str(python), **variables}
    bundle = [] if "--bundle" in options else ["--bundle", "none"]
    return {"args": [GATE, out, *options, *bundle], "env": env, "cwd": out.parent}


Gate = Callable[..., Result]  # (*options, **variables)


def tools(folder: Path) -> tuple[Path, str]:
    """The interpreter, and a PATH with everything else."""
    folder.mkdir(exist_ok=True)
    for name, text in (("python", PYTHON), ("compute-sanitizer", SANITIZER), ("ncu", PROFILER)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder / "python", f"{folder}{os.pathsep}{os.environ['PATH']}"


def table(result: Result) -> list[str]:
    return [line for line in result.summary.splitlines() if line.startswith("| ")][1:]


def steps(result: Result) -> list[str]:
    return [line.split()[1] for line in table(result)]


def verdict(result: Result, step: str) -> tuple[str, str]:
    """Word and note; the seconds between them depend on who else is busy."""
    (line,) = [line for line in table(result) if line.startswith(f"| {step} |")]
    _, _, word, _, note, _ = (field.strip() for field in line.split("|"))
    return word, note
