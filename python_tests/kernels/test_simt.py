"""The machine that runs CUDA device code without a GPU (python_tests/simt): its own checks, on tiny kernels."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import simulator

SIMT = Path(__file__).resolve().parent.parent / "simt"
CHECKS = [
    "indices",
    "shuffles",
    "votes",
    "barriers",
    "named_barriers",
    "chain",
    "polling",
    "atomics",
    "shared_memory",
    "errors",
    "stuck",
    "deep_stacks",
    "halves",
    "intrinsics",
    "speed",
]


# Both ways to switch between threads: assembly where there is some for the processor, and the portable one.
@pytest.fixture(scope="module", params=["native", "ucontext"])
def selftest(request, tmp_path_factory):
    if simulator.unavailable_reason() is not None:
        pytest.skip(simulator.unavailable_reason())
    program = tmp_path_factory.mktemp("simt") / "selftest"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    flags += ["-DLDREG_SIMT_UCONTEXT"] if request.param == "ucontext" else []
    sources = [str(SIMT / "selftest.cpp"), str(SIMT / "simt.cpp")]
    command = [*simulator.compiler(), *flags, f"-I{SIMT / 'include'}", *sources, "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.parametrize("check", CHECKS)
def test_check(selftest, check):
    ran = subprocess.run([selftest, check], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_every_check_is_run(selftest):
    listed = subprocess.run([selftest], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == CHECKS
