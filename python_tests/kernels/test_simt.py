"""The machine that runs CUDA device code without a GPU (python_tests/simt): its own checks, on tiny kernels."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def compiler() -> list[str]:
    for command in (os.environ.get("CXX", ""), "g++", "c++"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    pytest.skip("no C++ compiler: neither $CXX, g++ nor c++ is there")


# Both ways to switch between threads: assembly where there is some for the processor, and the portable one.
@pytest.fixture(scope="module", params=["native", "ucontext"])
def selftest(request, tmp_path_factory):
    if sys.platform == "win32":
        pytest.skip("the machine needs mmap")
    program = tmp_path_factory.mktemp("simt") / "selftest"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    flags += ["-DLDREG_SIMT_UCONTEXT"] if request.param == "ucontext" else []
    sources = [str(SIMT / "selftest.cpp"), str(SIMT / "simt.cpp")]
    command = [*compiler(), *flags, f"-I{SIMT / 'include'}", *sources, "-o", str(program)]
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
