"""The ring that brings references' rows to a team (csrc/cuda/ring.h), on the machine of python_tests/simt.

Rows come by the copy engine or by the threads' own copies, late, in an order that depends on a seed; what they give is the
same to the bit. Whole calls are in test_cuda.py.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import simulator

CUDA = simulator.ROOT / "csrc/cuda"
SEEDS = range(5)  # 0: threads in order
LAST = "    this_team().sync();\n    ring.pass((first / kRows + 1) * a.plan.chunks - 1);\n"

# What is done wrong: the file, its text, the text in its place.
MISTAKES = {
    "row read before it has landed": ("exact.h", "      ring.wait();\n", ""),
    "place filled while it is read": ("exact.h", LAST, "".join(reversed(LAST.splitlines(keepends=True)))),
    "parity of the turn before": ("ring.h", "at_ = 0, parity_ ^= 1;", "at_ = 0;"),
    "bytes of one row announced for all": ("ring.h", "rows * columns * int(sizeof(T))", "columns * int(sizeof(T))"),
}


def build(target: Path, *words: str | Path) -> Path:
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-w", "-pthread"]
    include = [f"-I{simulator.HERE}", f"-I{simulator.HERE / 'include'}", f"-I{CUDA}"]
    command = [*simulator.compiler(), *flags, *map(str, words), *include, "-o", str(target)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return target


def run(program: Path, way: str, seed: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, way, str(seed)], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if simulator.unavailable_reason() is not None:
        pytest.skip(simulator.unavailable_reason())
    return build(tmp_path_factory.mktemp("machine") / "simt.o", "-c", simulator.HERE / "simt.cpp")


@pytest.fixture(scope="module")
def program(machine, tmp_path_factory):
    return build(tmp_path_factory.mktemp("ring") / "ring", simulator.HERE / "ring.cpp", machine)


@pytest.mark.parametrize("way", ["bulk", "async"])
def test_distances_are_exact(program, way):
    """Rows of every kind of width and layout, rings of one turn and of several, two lists in a row."""
    for seed in SEEDS:
        ran = run(program, way, seed)
        assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_found(machine, tmp_path, mistake):
    name, right, wrong = MISTAKES[mistake]
    for source in (simulator.HERE / "ring.cpp", CUDA / "exact.h", CUDA / "ring.h"):  # "..." looks next to the source first
        shutil.copy(source, tmp_path)
    text = (CUDA / name).read_text()
    assert text.count(right) == 1, f"{name} has changed: {right!r}"
    (tmp_path / name).write_text(text.replace(right, wrong))
    program = build(tmp_path / "ring", tmp_path / "ring.cpp", machine)
    runs = [run(program, "bulk", seed) for seed in SEEDS]
    assert {ran.returncode for ran in runs} <= {0, 1}
    assert any(ran.returncode for ran in runs)
