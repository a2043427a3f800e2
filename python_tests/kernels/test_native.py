"""CPU kernels for processors that this machine is not: cross-compiled and emulated, or with vectors of another width.

python_tests/native/check.cpp compares them with plain float64 loops. Compiling takes most of the time, and only after
a change to csrc/cpu: build/native keeps the objects.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import native
import pytest
import simulator

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # a minute of compiling, another of emulation


def checked(command: list[str | Path], isa: str = "") -> str:
    environment = {**os.environ, "LDREG_CPU_ISA": isa}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := native.missing(native.CROSS, "qemu-aarch64"):
        pytest.skip(reason)
    objects = [native.isa_object(isa, [native.CROSS], x86=False) for isa in native.ARM_SETS]
    return native.link(tmp_path_factory.mktemp("native") / "check", [native.CROSS], objects)


@pytest.mark.parametrize("isa", ["neon", "neonbf16"])  # `portable`: neon without fused sums, a narrower tile
def test_arm(arm_program: Path, isa: str) -> None:
    assert checked(["qemu-aarch64", "-cpu", "max", arm_program, "64"], isa).startswith(f"{isa}: ")


@pytest.mark.parametrize(("processor", "sets"), [("cortex-a72", "neon, portable"), ("max", "neonbf16, neon, portable")])
def test_arm_runs_what_the_processor_has(arm_program: Path, processor: str, sets: str) -> None:
    environment = {**os.environ, "LDREG_CPU_ISA": "mmx"}
    command = ["qemu-aarch64", "-cpu", processor, arm_program]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, f"no mmx here: {sets}\n")


def test_arm_bindings_compile() -> None:
    """Against this machine's Python headers: only the syntax of what they do not see is at stake."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    if reason := native.missing(native.CROSS):
        pytest.skip(reason)
    include = [
        f"-I{native.ROOT / 'csrc'}",
        "-isystem",
        pybind11.get_include(),
        "-isystem",
        sysconfig.get_path("include"),
    ]
    command = [native.CROSS, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-DLDREG_X86=0", *include]
    built = subprocess.run([*command, native.ROOT / "csrc/bindings_cpu.cpp"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert not built.stderr


def test_vectors_of_64_bytes_with_bf16(tmp_path: Path) -> None:
    """What AVX512-BF16 executes but for the intrinsics; below 48 columns, the tile of floats."""
    if not simulator.compiler():
        pytest.skip("no C++ compiler: neither $CXX, g++ nor c++ is there")
    operand = f'-DLDREG_TEST_OPERAND="{native.HERE / "emulated_bf16.h"}"'
    flags = [*native.toolchain().CXX_FLAGS, *native.toolchain().QUIET, "-O1", "-DLDREG_VECTOR_BYTES=64", operand]
    kernels = native.compile_object(native.ROOT / "csrc/cpu/isa_portable.cpp", simulator.compiler(), flags)
    program = native.link(tmp_path / "check", simulator.compiler(), [kernels])
    assert checked([program, "12"]).startswith("portable: ")
