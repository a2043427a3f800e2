"""The tensor-core main loops without a GPU, on the machine of python_tests/simt.

They are csrc/cuda/mainloop_mma.h and a pipeline of csrc/cuda/hopper.h's instructions. Asynchronous copies and products
are as late there as PTX allows.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import simulator

TESTS = Path(__file__).resolve().parent.parent
SIMT = TESTS / "simt"
CUDA = TESTS.parent / "csrc/cuda"
SEEDS = range(6)  # 0: threads in order

# What is done wrong: which loop shows it, the file, its text, the text in its place.
MISTAKES = {
    "stage filled while it is read": ("mma", CUDA / "mainloop_mma.h", "__syncthreads();  // everyone's", "//"),
    "stage read before it has landed": ("mma", CUDA / "mainloop_mma.h", "copies<kStages - 2>", "copies<kStages - 1>"),
    "wrong chunks read": ("mma", CUDA / "mainloop_mma.h", "(read_x + read_stage) ^", "(read_x + read_stage) +"),
    "no wait for the loader": ("hopper", SIMT / "mainloops.cpp", "mbarrier_wait(full + at.stage, at.parity);", ""),
    "stage released too early": ("hopper", SIMT / "mainloops.cpp", "warpgroup_wait<1>();", "warpgroup_wait<2>();"),
    "sums read too early": ("hopper", SIMT / "mainloops.cpp", "warpgroup_finish(sum);\n", "warpgroup_wait<0>();\n"),
    "queries replaced while they are read": (
        "kept",
        SIMT / "mainloops.cpp",
        "mbarrier_wait(empty + all.stage, all",
        "void(all",
    ),
    "queries read before they have landed": (
        "kept",
        SIMT / "mainloops.cpp",
        "mbarrier_wait(kept, turn);",
        "(void)turn;",
    ),
    "box released too early": ("kept", SIMT / "mainloops.cpp", "warpgroup_wait<0>();  // the box", "// the box"),
    "wrong descriptor": ("hopper", CUDA / "hopper.h", "1024 >> 4", "512 >> 4"),
}


def build(target: Path, *words: str | Path) -> Path:
    flags = ["-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    built = subprocess.run(
        [
            *simulator.compiler(),
            *flags,
            *map(str, words),
            f"-I{SIMT}",
            f"-I{SIMT / 'include'}",
            f"-I{CUDA}",
            "-o",
            str(target),
        ],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return target


def run(program: Path, loop: str, seed: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, loop, str(seed)], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if simulator.unavailable_reason() is not None:
        pytest.skip(simulator.unavailable_reason())
    return build(tmp_path_factory.mktemp("machine") / "simt.o", "-O2", "-c", SIMT / "simt.cpp")


@pytest.fixture(scope="module")
def program(machine, tmp_path_factory):
    return build(tmp_path_factory.mktemp("mainloops") / "mainloops", "-O2", SIMT / "mainloops.cpp", machine)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loop", ["mma", "hopper", "kept"])
def test_products_are_exact(program, loop, seed):
    ran = run(program, loop, seed)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_found(machine, tmp_path, mistake):
    loop, file, right, wrong = MISTAKES[mistake]
    for source in (SIMT / "mainloops.cpp", file):  # "..." looks next to the source first
        shutil.copy(source, tmp_path)
    text = file.read_text()
    assert text.count(right) == 1, f"{file.name} has changed: {right!r}"
    (tmp_path / file.name).write_text(text.replace(right, wrong))
    program = build(tmp_path / "mainloops", "-O1", tmp_path / "mainloops.cpp", machine)
    runs = [run(program, loop, seed) for seed in SEEDS]
    assert {ran.returncode for ran in runs} <= {0, 1}
    assert any(ran.returncode for ran in runs)
